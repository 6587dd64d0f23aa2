"""One model of another library through our tools; run in a process of its own, so that a crash is seen as one.

Usage: python child.py NAME
"""

from __future__ import annotations

import copy
import io
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, Callable[[nn.Module], Tensor]]


def _declare_operators() -> None:
    """What torchvision's wheel misses beside a torch without its operators, so that it can be imported."""
    for schema in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                   "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):  # fmt: skip
        try:
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(schema)
            _KEPT.append(library)
        except RuntimeError:  # they are there
            return


_KEPT: list[Any] = []


def _images(size: int = 32, number: int = 2) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(0))


def _timm(name: str, size: int = 32, **options: Any) -> Made:
    import timm

    return timm.create_model(name, num_classes=5, **options), lambda m: m(_images(size))


def _torchvision(name: str, size: int = 32) -> Made:
    import torchvision

    return getattr(torchvision.models, name)(num_classes=5), lambda m: m(_images(size, 4))


def _transformers(name: str, run: str = "text", **settings: Any) -> Made:
    import transformers

    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**settings))
    ids = torch.arange(12).reshape(2, 6)
    if run == "text":
        return model, lambda m: m(input_ids=ids)[0]
    return model, lambda m: m(pixel_values=_images(settings.get("image_size", 32)))[0]


_SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
}


def _smp() -> Made:
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None), lambda m: m(_images(64))


def _tabnet() -> Made:
    from pytorch_tabnet.tab_network import TabNet

    model = TabNet(6, 3, n_d=4, n_a=4, n_steps=2, virtual_batch_size=4, group_attention_matrix=torch.eye(6))
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    return model, lambda m: m(x)[0]


def _efficientnet() -> Made:
    from efficientnet_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-b0", num_classes=5), lambda m: m(_images(64))


def _open_clip() -> Made:
    from open_clip.transformer import VisionTransformer

    model = VisionTransformer(image_size=32, patch_size=16, width=16, layers=2, heads=2, mlp_ratio=2.0, output_dim=8)
    return model, lambda m: m(_images())


def _diffusers() -> Made:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, layers_per_block=1)
    return model, lambda m: m(_images()).sample


def _geometric() -> Made:
    from torch_geometric.nn import GCN, BatchNorm

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gcn, self.norm = GCN(4, 8, 2, norm="batch_norm"), BatchNorm(8)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.norm(self.gcn(x, edges)).relu()

    x, edges = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    return Net(), lambda m: m(x, edges)


def _monai() -> Made:
    from monai.networks.nets import UNet

    model = UNet(spatial_dims=2, in_channels=3, out_channels=2, channels=(4, 8), strides=(2,), norm="batch")
    return model, lambda m: m(_images())


def _audio() -> Made:
    from torchaudio.models import Conformer

    model = Conformer(8, 2, 16, 2, 3)
    x = torch.randn(2, 10, 8, generator=torch.Generator().manual_seed(0))
    return model, lambda m: m(x, torch.tensor([10, 8]))[0]


def _effdet() -> Made:
    from effdet import EfficientDet, get_efficientdet_config

    config = get_efficientdet_config("tf_efficientdet_lite0")
    config.update({"image_size": (128, 128), "num_classes": 3})
    return EfficientDet(config, pretrained_backbone=False), lambda m: m(_images(128))[0][0]


def _sb3() -> Made:
    from sb3_contrib.common.torch_layers import BatchRenorm1d

    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    return nn.Sequential(nn.Linear(4, 4), BatchRenorm1d(4), nn.LayerNorm(4), nn.ReLU()), lambda m: m(x)


def _ultralytics() -> Made:
    from ultralytics.nn.tasks import ClassificationModel

    return ClassificationModel(
        "yolov8n-cls.yaml", nc=3, verbose=False
    ), lambda m: y[0] if isinstance(y := m(_images(64)), (tuple, list)) else y


MODELS: dict[str, Callable[[], Made]] = {
    "timm resnet18": lambda: _timm("resnet18"),
    "timm efficientnet_lite0": lambda: _timm("efficientnet_lite0", 64),
    "timm convnext_atto": lambda: _timm("convnext_atto", 64),
    "torchvision resnet18": lambda: _torchvision("resnet18"),
    "torchvision mobilenet_v2": lambda: _torchvision("mobilenet_v2"),
    "torchvision densenet121": lambda: _torchvision("densenet121"),
    "transformers Bert": lambda: _transformers("Bert", **_SMALL),
    "transformers XLNet": lambda: _transformers("XLNet", d_model=16, n_layer=2, n_head=2, d_inner=32, vocab_size=50),
    "transformers Llama": lambda: _transformers("Llama", **_SMALL),
    "transformers Swinv2": lambda: _transformers(
        "Swinv2", "image", image_size=32, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4
    ),
    "transformers ResNet": lambda: _transformers(
        "ResNet", "image", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    ),
    "segmentation_models_pytorch Unet": _smp,
    "pytorch_tabnet TabNet": _tabnet,
    "efficientnet_pytorch b0": _efficientnet,
    "open_clip VisionTransformer": _open_clip,
    "diffusers AutoencoderKL": _diffusers,
    "torch_geometric GCN": _geometric,
    "monai UNet": _monai,
    "torchaudio Conformer": _audio,
    "effdet EfficientDet": _effdet,
    "sb3_contrib BatchRenorm": _sb3,
    "ultralytics yolov8-cls": _ultralytics,
}


def _answer(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return run(model.eval())


def _losses(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> list[float]:
    torch.manual_seed(0)  # dropout draws the same
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = run(model.train()).double().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def _close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()) + 1e-9)


def main(name: str) -> None:
    """Convert, fuse, train, freeze, save, give plain torch, and go back."""
    warnings.simplefilter("ignore")
    _declare_operators()
    torch.set_default_dtype(torch.float64)  # rounding grows over fifty norms of two samples
    try:
        torch.manual_seed(0)
        plain, run = MODELS[name]()
    except (ImportError, OSError) as error:  # torchaudio needs a library built for this torch
        print(f"SKIPPED {type(error).__name__}: {error}")
        return
    import evenly
    from evenly.tools import walk
    from evenly.tools.fuse import fused_from

    want = _answer(plain, run)
    ours = copy.deepcopy(plain)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ours = evenly.convert(ours, fuse=True)
    left = [str(w.message) for w in said if "evenly.convert" in str(w.message)]
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in ours.named_buffers()] == [n for n, _ in plain.named_buffers()]
    _close(_answer(ours, run), want)
    torch.testing.assert_close(_losses(ours, run), _losses(plain, run), rtol=1e-4, atol=1e-9)

    frozen = evenly.freeze(copy.deepcopy(ours))
    before = {n: b.clone() for n, b in frozen.named_buffers() if "running_" in n or "num_batches" in n}
    _losses(frozen, run)
    tracked = walk.tracking(frozen)
    for key, value in before.items():
        if key.rpartition(".")[0] in tracked:
            assert torch.equal(dict(frozen.named_buffers())[key], value), key
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    copied = copy.deepcopy(ours)
    copied.load_state_dict(torch.load(file))
    _close(_answer(copied, run), _answer(ours, run))
    with evenly.reverted(ours):
        assert not any(type(m).__module__.startswith("evenly") for m in ours.modules())
        inside = _answer(ours, run)
    _close(_answer(ours, run), inside)
    number = sum(type(m).__module__.startswith("evenly.") for m in ours.modules())
    fused = sum(fused_from(m) is not None for m in ours.modules())
    evenly.revert(ours)
    assert [type(m) for m in ours.modules()] == [type(m) for m in plain.modules()]
    print(f"checked: {number} norms of ours, {fused} blocks fused; {' '.join(left)[:400]}")


if __name__ == "__main__":
    main(sys.argv[1])
