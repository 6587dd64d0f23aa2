"""`evenly.fold`: what is folded, what is left and why, and what comes out."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchmarks import networks
from torch import Tensor, fx, nn

import evenly
from evenly.tools.fold import certificate

CASE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def settled(model: nn.Module) -> nn.Module:
    """The model in evaluation, its norms with statistics and weights as after training."""
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            found: Any = module
            found.running_mean.normal_()
            found.running_var.uniform_(0.5, 2)
            if isinstance(found.weight, nn.Parameter):
                nn.init.uniform_(found.weight, 0.5, 1.5)
                nn.init.normal_(found.bias)
    return model.eval()


def agrees(folded: nn.Module, model: nn.Module, *xs: Tensor) -> None:
    """Both answer alike, also on other samples."""
    with torch.no_grad():
        for inputs in (xs, tuple(torch.cat([x, x.flip(0), x + 0.5]) for x in xs)):
            torch.testing.assert_close(folded(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


def reasons(folded: Any) -> dict[str, str]:
    """Why each norm was left."""
    return {item["where"]: item["reason"] for item in folded.certificate["refused"]}


class Dense(nn.Module):
    """DenseNet's layers: norm, ReLU, convolution, norm, ReLU, convolution, on a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 4, 3, padding=1)
        for k, width in enumerate((4, 8), start=1):
            self.add_module(f"first{k}", nn.BatchNorm2d(width))
            self.add_module(f"one{k}", nn.Conv2d(width, 8, 1, bias=False))
            self.add_module(f"second{k}", nn.BatchNorm2d(8))
            self.add_module(f"three{k}", nn.Conv2d(8, 4, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        features = [self.conv0(x)]
        for k in (1, 2):
            y = getattr(self, f"one{k}")(F.relu(getattr(self, f"first{k}")(torch.cat(features, 1))))
            features.append(getattr(self, f"three{k}")(F.relu(getattr(self, f"second{k}")(y))))
        return torch.cat(features, 1)


def test_a_residual_network_stays_its_own_class() -> None:
    """Every norm of a ResNet is folded; the copy has its class, its convolutions' names, and no norm."""
    model = settled(networks.resnet18(8, 10))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(2, 3, 32, 32)
    folded: Any = evenly.fold(model, x)

    assert type(folded) is networks.ResNet
    assert len(folded.certificate["folds"]) == 20
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {k for k in folded.state_dict() if k.endswith("weight")} == {
        k for k in state if "conv" in k and k.endswith("weight")
    } | {f"layer{k}.0.downsample.0.weight" for k in (2, 3, 4)} | {"fc.weight"}
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    agrees(folded, model, x)


def test_densenets_first_norms_are_left_with_the_reason() -> None:
    """The second norms are folded; the first, norm and ReLU on a concatenation, are not, and it is said."""
    model = settled(Dense())
    folded: Any = evenly.fold(model, CASE)

    assert [f["from"] for f in folded.certificate["folds"]] == ["second1", "second2"]
    assert set(reasons(folded)) == {"first1", "first2"}
    assert all("concatenation" in r and "relu follows, and the shift is not 0" in r for r in reasons(folded).values())
    agrees(folded, model, CASE)


def test_a_norm_between_activation_and_padded_convolution_is_folded_exactly() -> None:
    """Each channel is padded with what the norm sends to zero; other sizes are right, too."""
    model = settled(nn.Sequential(nn.SiLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, padding=(1, 2), groups=3)))
    folded: Any = evenly.fold(model, CASE)

    assert folded.certificate["folds"][0]["rule"] == "norm before padded convolution"
    assert isinstance(folded, fx.GraphModule)
    agrees(folded, model, CASE)
    agrees(folded, model, torch.randn(1, 3, 13, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_folded_in_float64_and_rounded_once(dtype: torch.dtype) -> None:
    """The folded weight is the float64 product, rounded."""
    model = settled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))).to(dtype)
    folded: Any = evenly.fold(model, torch.randn(5, 3, dtype=dtype))
    linear, norm = (m.double() for m in copy.deepcopy(model))
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()

    right = (linear.weight * scale[:, None]).to(dtype)
    torch.testing.assert_close(folded[0].weight, right, rtol=1e-15 if dtype == torch.float64 else 0.0, atol=0.0)


def test_zero_variance() -> None:
    """A running variance of 0 is folded with an eps, and refused without."""
    model: Any = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[1].running_var[1] = 0
    assert evenly.fold(model, CASE).certificate["refused"] == []

    model[1].eps = 0.0
    assert "running variance of 0 with eps 0" in reasons(evenly.fold(model, CASE))["1"]


def test_a_weight_that_overflows_its_type_is_refused() -> None:
    """float16 holds up to 65504; a scale beyond leaves the norm."""
    model: Any = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).half()
    model[1].running_var[1], model[1].eps = 1e-7, 1e-12
    model[1].weight.data[1] = 6e4

    assert "overflow" in reasons(evenly.fold(model, (CASE / 1e3).half()))["1"]


def test_evenlys_layers_leave_none_of_their_classes() -> None:
    """Activation, residual, another channel axis, frozen, group norm: plain torch, folded where it can be."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.norm = evenly.BatchNorm2d(3, activation="relu")
            self.group = evenly.GroupNorm(1, 3, activation="silu")
            self.left = evenly.BatchNorm2d(3, activation="gelu")
            self.linear = nn.Linear(8, 8)
            self.last = evenly.BatchNorm(8, channel=-1, activation="leaky_relu", activation_args=(0.2,))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.linear(self.left(self.group(self.norm(self.conv(x), residual=x)))))

    model = settled(Mixed())
    folded: Any = evenly.fold(model, CASE)

    assert [f["from"] for f in folded.certificate["folds"]] == ["norm", "last"]
    assert not [m for m in folded.modules() if type(m).__module__.startswith("evenly")]
    assert "GELU" in reasons(folded)["left"]
    agrees(folded, model, CASE)


def test_a_converted_model_is_folded_like_the_plain_one() -> None:
    """``convert(fuse=True)`` before changes nothing in what is folded."""
    plain = settled(networks.resnet18(4, 10))
    ours = evenly.convert(copy.deepcopy(plain), fuse=True)
    x = torch.randn(1, 3, 32, 32)
    one: Any = evenly.fold(plain, x)
    other: Any = evenly.fold(ours, x)

    assert one.certificate["digest"] == other.certificate["digest"]
    assert type(other) is networks.ResNet


def test_shared_convolution_is_cloned_and_said() -> None:
    """One convolution, two norms (pytorch#197539): two convolutions, of which one keeps the name."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.conv(x)).relu() + self.b(self.conv(2 * x))

    model = settled(Shared())
    folded: Any = evenly.fold(model, CASE)

    assert folded.certificate["cloned"] == ["conv as conv_1"]
    assert set(folded.state_dict()) == {"conv.weight", "conv.bias", "conv_1.weight", "conv_1.bias"}
    agrees(folded, model, CASE)


def test_branches_become_one_convolution() -> None:
    """RepVGG's block: 3x3, 1x1 and identity, each with its norm, are one 3x3 convolution."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.three = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
            self.one = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))
            self.identity = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.three(x) + self.one(x) + self.identity(x))

    model = settled(nn.Sequential(Block(), Block()))
    folded: Any = evenly.fold(model, CASE)

    assert set(folded.state_dict()) == {f"{k}.three.0.{t}" for k in (0, 1) for t in ("weight", "bias")}
    agrees(folded, model, CASE)


def test_prune_removes_constant_channels_and_lists_them() -> None:
    """A channel whose scale is 0 is a constant: it goes into the next bias."""
    model: Any = settled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    with torch.no_grad():
        model[1].weight[3], model[1].bias[3] = 0.0, 0.7
    folded: Any = evenly.fold(model, CASE, prune=True)

    assert folded[0].out_channels == folded[3].in_channels == 7
    assert folded.certificate["pruned"] == ["0: channel 3, always 0.7"]
    assert evenly.fold(model, CASE).certificate["pruned"] == []
    agrees(folded, model, CASE)


@pytest.mark.parametrize("form", ["module", "graph"])
def test_the_certificate_survives_pickling_without_evenly(form: str, tmp_path: Any) -> None:
    """Model and certificate load in a process that has no evenly; the certificate is JSON as it stands."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    layers += [nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1)] if form == "graph" else []
    folded: Any = evenly.fold(settled(nn.Sequential(*layers)), CASE)
    assert folded.certificate["form"] == form
    assert copy.deepcopy(folded).certificate == folded.certificate
    assert {"schema", "form", "folds", "refused", "torch", "digest"} <= json.loads(
        json.dumps(folded.certificate)
    ).keys()
    (tmp_path / "folded.pkl").write_bytes(pickle.dumps(folded))
    script = (
        "import sys; sys.modules['evenly'] = None; import pickle, torch\n"
        "folded = pickle.load(open('folded.pkl', 'rb')); folded(torch.randn(1, 3, 9, 9))\n"
        "print(folded.certificate['folds'][0]['rule'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)

    assert done.stdout == "norm after convolution\n", done.stderr
    assert certificate.digest(folded) == folded.certificate["digest"]


def test_an_exported_program_is_folded() -> None:
    """What torch.fx cannot follow is read from an exported program, given or made."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            if x.shape[1] != 3:
                raise ValueError
            return {"y": self.norm(self.conv(x))}

    model = settled(Branching())
    program = torch.export.export(model, (CASE,))
    for subject in (model, program):
        folded: Any = evenly.fold(subject, CASE)
        assert set(folded.state_dict()) == {"conv.weight", "conv.bias"}
        torch.testing.assert_close(folded(CASE)["y"], model(CASE)["y"], rtol=1e-4, atol=1e-5)


def test_keras_on_torch_is_folded() -> None:
    """Keras's layers are read from the exported program: channels last, its own norm."""
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras runs on another backend")
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten()]
    )
    model.layers[1].moving_mean.assign([0.1, 0.2, 0.3, 0.4])
    model.layers[1].moving_variance.assign([0.5, 2.0, 1.5, 0.7])
    x = torch.randn(2, 8, 8, 3)
    model.eval()
    folded: Any = evenly.fold(model, x)

    assert folded.certificate["refused"] == []
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


def test_bad_input_is_refused_in_one_line() -> None:
    """Training mode, what cannot be traced, statistics of the batch, a norm that is not reached."""

    class Deciding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"training mode; call model\.eval\(\) first"):
        evenly.fold(nn.BatchNorm2d(3), CASE)
    with pytest.raises(ValueError, match=r"cannot trace 1 \(Deciding\).*Pass a torch\.export\.ExportedProgram"):
        evenly.fold(nn.Sequential(nn.Conv2d(3, 4, 3), Deciding()).eval(), CASE)
    with pytest.raises(ValueError, match="TorchScript"), pytest.warns():
        evenly.fold(torch.jit.trace(nn.Sequential(nn.ReLU()).eval(), CASE), CASE)
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert "track_running_stats=False" in reasons(evenly.fold(own, CASE))["1"]
    one: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    one[1].train()
    assert "training mode" in reasons(evenly.fold(one, CASE))["1"]
    spare: Any = settled(nn.Sequential(nn.Conv2d(3, 4, 3)))
    spare[0].spare = nn.BatchNorm2d(4).eval()
    assert reasons(evenly.fold(spare, CASE)) == {"0.spare": "inside 0, which is not read"}


def test_text_and_section_name_every_fold_and_refusal() -> None:
    """People read on a line or a row what was folded into what, and why the rest was left."""
    paper = evenly.fold(settled(Dense()), CASE).certificate
    text, section = certificate.text(paper), certificate.section(paper)

    for name in ("second1", "one1", "first2"):
        assert name in text
        assert name in section
    assert certificate.summary(paper).startswith("2 folded; ")
