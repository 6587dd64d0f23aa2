"""What a call does to a per-channel scale and shift: the one table of operations that let them pass.

An operation is known by the function, method, layer or exported operator that it is; a name alone
says nothing. What is not in the table stops a fold, with its name as the reason.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

# kind: what passes.  moves: elements are permuted, copied or left out, whatever they are.
# means: every output is a weighted mean of elements of one channel.  greatest: the greatest of them.
# scales: f(a x) = a f(x) for a >= 0.  same: the input.
_NAMES = {
    "same": "contiguous clone dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout "
    "feature_alpha_dropout detach alias lift_fresh",
    "moves": "reshape view flatten unflatten permute transpose swapaxes swapdims movedim moveaxis squeeze unsqueeze t "
    "pixel_shuffle pixel_unshuffle channel_shuffle flip roll chunk split narrow select unbind getitem slice "
    "split_with_sizes tensor_split unsafe_chunk unsafe_split",
    "means": "mean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "interpolate upsample upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d "
    "upsample_linear1d upsample_trilinear3d upsample_bicubic2d",
    "greatest": "amax max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    "scales": "relu relu_ leaky_relu leaky_relu_ abs abs_ prelu",
    "cat": "cat concat concatenate",
    "add": "add add_ iadd",
    "pad": "pad constant_pad_nd",
}
_LAYERS: dict[str, str] = {
    "same": "Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout",
    "moves": "Flatten Unflatten PixelShuffle PixelUnshuffle ChannelShuffle",
    "means": "AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d "
    "Upsample UpsamplingNearest2d UpsamplingBilinear2d ReflectionPad1d ReflectionPad2d ReflectionPad3d "
    "ReplicationPad1d ReplicationPad2d ReplicationPad3d CircularPad1d CircularPad2d CircularPad3d",
    "greatest": "MaxPool1d MaxPool2d MaxPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d",
    "scales": "ReLU LeakyReLU PReLU",
    "pad": "ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ConstantPad3d",
}
VIEWS = set(_NAMES["moves"].split()) - {"reshape", "roll", "flip"} | {"reshape", "contiguous", "detach", "alias"}
VIEWS |= {name for name in _NAMES["same"].split() if "dropout" in name}  # in evaluation, its input itself


def _functions() -> dict[Any, tuple[str, str]]:
    found: dict[Any, tuple[str, str]] = {}
    for kind, names in _NAMES.items():
        for name in names.split():
            for home in (torch, F, operator, torch._C._nn):
                function = getattr(home, name, None)
                if callable(function) and not isinstance(function, type):
                    found[function] = (kind, name)
    return found


_FUNCTIONS = _functions()
_METHODS = {name: kind for kind, names in _NAMES.items() for name in names.split() if hasattr(Tensor, name)}
_CLASSES = {getattr(nn, name): kind for kind, names in _LAYERS.items() for name in names.split()}
_BY_NAME = {name: kind for kind, names in _NAMES.items() for name in names.split()}


def name_of(node: fx.Node, root: nn.Module) -> str:
    """The operation's name, for people."""
    if node.op == "call_module":
        return f"{type(root.get_submodule(str(node.target))).__name__} ({node.target})"
    if node.op == "call_function":
        return _operator(node) or str(getattr(node.target, "__name__", node.target))
    return {"placeholder": "the model's input", "output": "the model's output"}.get(node.op, str(node.target))


def _operator(node: fx.Node) -> str | None:
    """The name of an exported operator."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target._schema.name.split("::")[1])
    return None


def short(node: fx.Node) -> str:
    """The bare name of a function, method or exported operator."""
    if node.op == "call_method":
        return str(node.target)
    if node.op == "call_function":
        return _operator(node) or _FUNCTIONS.get(node.target, ("", getattr(node.target, "__name__", "")))[1]
    return ""


def kind_of(node: fx.Node, root: nn.Module) -> str | None:
    """What passes the call (a key of the table), or None: nothing is known."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if module._forward_hooks or module._forward_pre_hooks:
            return None
        kind = _CLASSES.get(type(module))
        return _settled(kind, type(module).__name__, vars(module), module)
    if node.op == "call_method":
        return _settled(_METHODS.get(str(node.target)), str(node.target), _named(node), None)
    if node.op == "call_function":
        exported = _operator(node)
        if exported is not None:
            if exported == "to" and _stays(node):
                return "same"
            return _settled(_BY_NAME.get(exported), exported, _named(node), None)
        kind, name = _FUNCTIONS.get(node.target, (None, ""))
        return _settled(kind, name, _named(node), None)
    return None


def _stays(node: fx.Node) -> bool:
    """Whether a conversion keeps the type."""
    one, other = node.meta.get("val"), node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
    return one is not None and other is not None and one.dtype == other.dtype and one.device == other.device


def _settled(kind: str | None, name: str, given: dict[str, Any], module: Any) -> str | None:
    """The kind, where the call's settings leave it true."""
    if kind == "same" and "ropout" in name:
        training = module.training if module is not None else given.get("training", given.get("train", False))
        return None if training else kind
    if kind == "means" and "avg_pool" in name.lower().replace("avgpool", "avg_pool"):
        padded = given.get("padding", 0) not in (0, (0,), (0, 0), (0, 0, 0), [0], [0, 0], [0, 0, 0])
        override = given.get("divisor_override") is not None
        return None if override or (padded and given.get("count_include_pad", True)) else kind
    if kind == "greatest" and (given.get("return_indices") or (module is None and "indices" in name)):
        return None
    if name == "pad" and given.get("mode", "constant") != "constant":
        return "means"  # copies, and nothing else at the border
    if kind == "add" and given.get("alpha", 1) != 1:
        return None
    return kind


_POSITIONS = {
    "avg_pool1d": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "avg_pool3d": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "dropout": ("input", "p", "training"), "dropout1d": ("input", "p", "training"),
    "dropout2d": ("input", "p", "training"), "dropout3d": ("input", "p", "training"),
    "feature_dropout": ("input", "p", "train"), "alpha_dropout": ("input", "p", "training"),
    "feature_alpha_dropout": ("input", "p", "training"),
    "pad": ("input", "pad", "mode", "value"), "constant_pad_nd": ("input", "pad", "value"),
    "cat": ("tensors", "dim"), "concat": ("tensors", "dim"), "concatenate": ("tensors", "dim"),
    "mean": ("input", "dim", "keepdim"), "amax": ("input", "dim", "keepdim"), "add": ("input", "other", "alpha"),
    "leaky_relu": ("input", "negative_slope", "inplace"), "prelu": ("input", "weight"),
}  # fmt: skip


def _named(node: fx.Node) -> dict[str, Any]:
    """A call's arguments by name. torch.nn.functional drops by default in training; F.dropout's default is True."""
    positions = _POSITIONS.get(short(node), ())
    given = dict(zip(positions, node.args, strict=False)) | dict(node.kwargs)
    if "ropout" in short(node) and node.op == "call_function" and _operator(node) is None:
        given.setdefault("training", True)
    return given


named = _named


def settings(node: fx.Node, root: nn.Module) -> dict[str, Any]:
    """The call's settings by name, whether a layer or a function."""
    return vars(root.get_submodule(str(node.target))) if node.op == "call_module" else _named(node)


def touched(node: fx.Node, root: nn.Module, shape: tuple[int, ...], out: tuple[int, ...]) -> set[int]:
    """The axes of the input along which a mean, greatest or padding goes; a negative slope's are none."""
    given = settings(node, root)
    if short(node) in ("mean", "amax"):
        axes = given.get("dim", given.get("axis"))
        if axes is None or axes == []:
            return set(range(len(shape)))
        return {a % len(shape) for a in ([axes] if isinstance(axes, int) else axes)}
    if len(out) != len(shape):
        return set(range(len(shape)))
    where = {a for a in range(len(shape)) if out[a] != shape[a]}
    return where | set(range(min(2, len(shape) - 1), len(shape)))


def writes(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """The node whose value the call writes over, if it does."""
    target = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if node.op == "call_module":
        return target if getattr(root.get_submodule(str(node.target)), "inplace", False) is True else None
    name = short(node)
    own = (name.endswith("_") and not name.endswith("__")) or name in ("iadd", "isub", "imul", "itruediv", "setitem")
    return target if own or node.kwargs.get("inplace") is True else None
