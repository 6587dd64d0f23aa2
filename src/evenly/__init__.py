"""evenly: batch normalization and its family, fast, honest and visible.

Public names are loaded when first used, so that ``import evenly`` does not import torch.
"""

from importlib import import_module, metadata
from typing import Any

_HOME = {
    "BatchNorm": "nn.batchnorm",
    "BatchNorm1d": "nn.batchnorm",
    "BatchNorm2d": "nn.batchnorm",
    "BatchNorm3d": "nn.batchnorm",
    "SyncBatchNorm": "nn.batchnorm",
    "LayerNorm": "nn.layernorm",
    "RMSNorm": "nn.layernorm",
    "GroupNorm": "nn.groupnorm",
    "InstanceNorm1d": "nn.instancenorm",
    "InstanceNorm2d": "nn.instancenorm",
    "InstanceNorm3d": "nn.instancenorm",
    "Renorm": "nn.renorm",
    "timm_norm_act": "nn.timm",
    "functional": "functional",
    "keras": "keras",
    "show_versions": "versions",
    "use_backend": "backends",
    "convert": "tools.convert",
    "revert": "tools.convert",
    "reverted": "tools.reverted",
    "fold": "tools.fold.folding",
    "freeze": "tools.freeze",
    "unfreeze": "tools.freeze",
    "recalibrate": "tools.recalibrate",
    "pool_statistics": "tools.pool_statistics",
    "adapt": "tools.adapt",
    "xray": "tools.xray",
    "watch": "tools.watch",
    "check_model": "tools.contract",
    "diagnose": "tools.diagnose",
    "Diagnosis": "tools.diagnosis",
}
_MODULES = {"functional", "keras"}

__all__ = sorted(_HOME.keys() - {"keras"})  # a star import must not need Keras


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module 'evenly' has no attribute {name!r}")
    module = import_module(f"evenly.{_HOME[name]}")
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _version() -> str:
    try:
        return metadata.version("evenly")
    except metadata.PackageNotFoundError:  # from a plain PYTHONPATH
        return "0.1.0"
