"""torch.func, tensor subclasses and modes: differentiable operations, and honest statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vmap

import evenly
from evenly import functional as F

NOT_UPDATED = "running statistics are not updated under torch.func"


def test_grad_and_jacrev_in_training_mode() -> None:
    """torch refuses the in-place update (functorch); ours gives the gradient, leaves the buffers and says so once."""
    ours, torchs = evenly.BatchNorm1d(3), nn.BatchNorm1d(3)
    x = torch.randn(5, 3)

    def loss(layer: nn.Module, parameters: dict[str, Tensor]) -> Tensor:
        y: Tensor = functional_call(layer, parameters, (x,))
        return (y**3).sum()

    with pytest.warns(UserWarning, match=NOT_UPDATED):
        gradients = grad(lambda p: loss(ours, p))(dict(ours.named_parameters()))
    with pytest.warns(UserWarning, match=NOT_UPDATED):
        jacobian = jacrev(ours)(x)

    expected = torch.autograd.grad((torchs(x) ** 3).sum(), list(torchs.parameters()))
    for got, exact in zip(gradients.values(), expected, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(torchs, x), rtol=1e-4, atol=1e-5)
    assert int(ours.num_batches_tracked) == 0
    with pytest.raises(RuntimeError, match=r"in-place|inplace|mutat"):
        jacrev(nn.BatchNorm1d(3))(x)


def test_an_ensemble_updates_its_stacked_buffers() -> None:
    """Under vmap with batched buffers every member's statistics are its own, updated in place."""
    members = [evenly.BatchNorm1d(3, momentum=None) for _ in range(4)]
    parameters, buffers = stack_module_state(members)
    x = torch.randn(4, 5, 3)

    y = vmap(lambda p, b, x: functional_call(members[0], (p, b), (x,)))(parameters, buffers, x)

    for k, member in enumerate(copy.deepcopy(members)):
        torch.testing.assert_close(y[k], member(x[k]))
        torch.testing.assert_close(buffers["running_mean"][k], member.running_mean)
        torch.testing.assert_close(buffers["running_var"][k], member.running_var)
    assert buffers["num_batches_tracked"].tolist() == [1] * 4


@pytest.mark.parametrize("ghosts", [1, 3])
def test_statistics_are_returned_on_request(ghosts: int) -> None:
    """return_stats gives what the in-place form would have written, under any transform."""
    layer = evenly.BatchNorm1d(3, ghosts=ghosts)
    x = torch.randn(2, 7, 3)

    def step(x: Tensor) -> tuple[Tensor, ...]:
        return F.batch_norm(x, torch.zeros(3), torch.ones(3), training=True, ghosts=ghosts, return_stats=True)

    y, mean, var = vmap(step)(x)

    torch.testing.assert_close(y[0], layer(x[0]))
    torch.testing.assert_close(mean[0], layer.running_mean)
    torch.testing.assert_close(var[0], layer.running_var)
    _, (_, mean, _) = grad(lambda x: (step(x)[0].pow(3).sum(), step(x)), has_aux=True)(x[0])
    torch.testing.assert_close(mean, layer.running_mean)


@pytest.mark.filterwarnings(f"ignore:{NOT_UPDATED}")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_other_transforms() -> None:
    """vmap without batched buffers, jvp and hessian agree with loops and with torch.nn's evaluation."""
    layer = evenly.BatchNorm1d(3, activation="silu", dtype=torch.float64)
    x, v = torch.randn(4, 5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)

    torch.testing.assert_close(vmap(layer)(x), torch.stack([copy.deepcopy(layer)(t) for t in x]))
    tangent = jvp(layer, (x[0],), (v,))[1]
    torch.testing.assert_close(tangent, torch.einsum("abcd,cd->ab", jacrev(layer)(x[0]), v))
    second = hessian(lambda t: layer(t).pow(2).sum())(x[0])
    assert torch.allclose(second, second.permute(2, 3, 0, 1))


@pytest.mark.parametrize("name", ["layer_norm", "group_norm", "instance_norm", "rms_norm"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_the_family_under_vmap(name: str) -> None:
    """A batch of calls equals calls one by one."""
    arguments = {"layer_norm": ((5,),), "rms_norm": ((5,),), "group_norm": (2,)}.get(name, ())
    x = torch.randn(3, 2, 4, 5)
    norm = getattr(F, name)

    y = vmap(lambda t: norm(t, *arguments, activation="relu"))(x)

    torch.testing.assert_close(y, torch.stack([norm(t, *arguments, activation="relu") for t in x]))


class Named(Tensor):
    """A tensor subclass that only has to survive."""


def test_subclasses_survive() -> None:
    """A tensor subclass comes out as it went in."""
    x = torch.randn(4, 3).as_subclass(Named)

    assert type(F.batch_norm(x, None, None, training=True)) is Named
    assert type(evenly.BatchNorm1d(3)(x)) is Named
    assert type(nn.BatchNorm1d(3)(x)) is Named


def test_modes_see_operations() -> None:
    """make_fx on real tensors records operations, not a result."""
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda x: F.layer_norm(x, (3,)))(torch.randn(2, 3))

    x = torch.randn(2, 3)
    torch.testing.assert_close(graph(x), F.layer_norm(x, (3,)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_types_are_torchs(dtype: torch.dtype) -> None:
    """Under CPU autocast every norm's result has the type that torch's has."""
    x = torch.randn(4, 6, 5)
    for name in ("BatchNorm1d", "InstanceNorm1d", "GroupNorm", "LayerNorm"):
        arguments = {"GroupNorm": (2, 6), "LayerNorm": (5,)}.get(name, (6,))
        for t in (x, x.to(dtype)):
            with torch.autocast("cpu", dtype=dtype):
                torchs, ours = (getattr(library, name)(*arguments)(t) for library in (nn, evenly))
            assert ours.dtype == torchs.dtype
            torch.testing.assert_close(ours.float(), torchs.float(), rtol=2e-2, atol=2e-2)


def test_scaled_training_under_autocast() -> None:
    """GradScaler's whole loop: an overflowing scale makes gradients infinite, the statistics stay and count."""
    layer = evenly.BatchNorm1d(4, activation="relu")
    model = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    before = model[0].weight.detach().clone()
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(torch.randn(8, 3) * 1e6).square().mean() * 1e6
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    assert torch.equal(model[0].weight, before)
    assert int(layer.num_batches_tracked) == 2
    assert int(layer.skipped_batches) == 0


def test_deterministic_mode() -> None:
    """Under use_deterministic_algorithms nothing is refused, and the same input gives the same bits."""
    x = torch.randn(16, 8, 9, 9)
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for _ in range(2):
            layer = evenly.BatchNorm2d(8, activation="gelu")
            leaf = x.clone().requires_grad_()
            y = layer(leaf, residual=x)
            results.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *layer.parameters()]), layer.running_var])
    finally:
        torch.use_deterministic_algorithms(False)

    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
