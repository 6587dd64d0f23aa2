"""Norms with given statistics, of every make: read as a scale and a shift, and written as plain torch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

_TORCH = {
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
}  # fmt: skip
_RANKED = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"}


class Norm(NamedTuple):
    """``y = scale * x + shift`` per channel, in float64; an activation may follow.

    Args:
        scale: shape ``(C,)``.
        shift: shape ``(C,)``.
        channel: the channel axis.
        activation: the layer that follows inside the norm's own, or None.
    """

    scale: Tensor
    shift: Tensor
    channel: int = 1
    activation: nn.Module | None = None


class Refused(Exception):  # noqa: N818  # not an error: the reason why something is left
    """Why something is not folded."""


def is_evenly(cls: type) -> bool:
    """Whether a class is a layer of evenly's."""
    return cls.__module__.startswith("evenly.nn.")


def is_given(module: nn.Module) -> bool:
    """Whether a module keeps running statistics, whatever its make."""
    tensors = {**module._buffers, **module._parameters}
    return isinstance(module, (_BatchNorm, _InstanceNorm)) or {"running_mean", "running_var"} <= tensors.keys()


def of(module: nn.Module) -> Norm | None:
    """A norm's scale and shift; None where the module is no norm that keeps statistics.

    Raises:
        Refused: it measures its input, or its statistics cannot be used.
    """
    if not is_given(module):
        return None
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if mean is None or var is None:
        raise Refused("it measures its input (track_running_stats=False)")
    known = type(module) in _TORCH or is_evenly(type(module))
    if known and _measures(module):
        raise Refused("it is in training mode and measures its input; call .eval() on it")
    own: Any = module
    scale, shift = scale_and_shift(mean, var, own.eps, own.weight, own.bias)
    if module._forward_hooks or module._forward_pre_hooks:
        raise Refused("it has hooks, which may change what passes")
    if is_evenly(type(module)):
        if getattr(module, "zero_masked", False):
            raise Refused("it may write zeros under a mask")
        axis = int(getattr(module, "channel", 1))
        return Norm(scale, shift, axis, _activation(module))
    if known:
        return Norm(scale, shift)
    return _proved(module, scale, shift)


def _measures(module: Any) -> bool:
    if getattr(module, "frozen", False):
        return False
    always = isinstance(module, _InstanceNorm) and not module.track_running_stats
    return bool(module.training or always)


def scale_and_shift(
    mean: Tensor, var: Tensor, eps: Any, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``a = weight / sqrt(var + eps)`` and ``b = bias - mean * a``, in float64.

    Raises:
        Refused: they are not finite.
    """
    mean, var = mean.detach().cpu().double(), var.detach().cpu().double()
    scale = (var + float(eps)).rsqrt()
    if weight is not None:
        scale = scale * weight.detach().cpu().double().flatten()
    shift = -mean.flatten() * scale.flatten()
    if bias is not None:
        shift = shift + bias.detach().cpu().double().flatten()
    if not (scale.isfinite().all() and shift.isfinite().all()):
        zero = "a running variance of 0 with eps 0" if bool((var + float(eps) <= 0).any()) else "statistics"
        raise Refused(f"its scale is not finite ({zero})")
    return scale.flatten(), shift


def _activation(module: Any) -> nn.Module | None:
    """evenly's fused activation as torch's layer."""
    chosen = module._settings().activation
    layers: dict[str, Any] = {
        "relu": nn.ReLU, "relu6": nn.ReLU6, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "silu": nn.SiLU, "gelu": nn.GELU,
    }  # fmt: skip
    if chosen.name is None:
        return None
    made: nn.Module = layers[chosen.name](*([chosen.arg] if chosen.kind.parameters else []))
    return made.eval()


def _proved(module: nn.Module, scale: Tensor, shift: Tensor) -> Norm:
    """Somebody else's norm: taken for ``a x + b``, then its own activation, only if it computes that.

    Tried on inputs of two sizes and three magnitudes, in float64.
    """
    import copy

    twin = copy.deepcopy(module).cpu().double()
    act = getattr(twin, "act", None)
    candidates = [None] if not isinstance(act, nn.Module) or isinstance(act, nn.Identity) else [act, None]
    state = torch.get_rng_state()
    xs = [size * torch.randn(n, len(scale), 3, 2, dtype=torch.float64) for n in (1, 2) for size in (0.1, 1.0, 100.0)]
    torch.set_rng_state(state)
    for activation in candidates:
        if all(_agrees(twin, x, scale, shift, activation) for x in xs):
            kept = getattr(module, "act", None) if activation is not None else None
            return Norm(scale, shift, 1, kept)
    raise Refused(
        f"{type(module).__name__} does not compute weight * (x - running_mean) / sqrt(running_var + eps) + bias"
    )


def _agrees(twin: nn.Module, x: Tensor, scale: Tensor, shift: Tensor, activation: nn.Module | None) -> bool:
    expected = x * scale[:, None, None] + shift[:, None, None]
    with torch.no_grad():
        try:
            found = twin(x.clone())
        except Exception:
            return False
        expected = expected if activation is None else activation(expected.clone())
    if not isinstance(found, Tensor) or found.shape != x.shape:
        return False
    size = float((x.abs() * scale.abs().max() + shift.abs().max()).max())
    return bool(((found - expected).abs() <= 1e-9 * max(size, 1e-30)).all())


def plain(module: nn.Module) -> nn.Module:
    """A layer of evenly's in evaluation, as torch's layer or a graph of torch's functions; names of tensors stay.

    Raises:
        Refused: torch has no way to say it.
    """
    if not is_evenly(type(module)):
        return module
    any_module: Any = module
    activation = _activation(module)
    name = next((c.__name__ for c in type(module).__mro__ if c in _TORCH or c in _OWN_STATISTICS), "")
    channel = getattr(module, "channel", 1)
    if activation is None and (name in _RANKED or name in {"LayerNorm", "GroupNorm", "RMSNorm"}) and channel == 1:
        return _as(getattr(nn, name), any_module)
    return _as_graph(any_module, activation, channel)


_OWN_STATISTICS = {nn.LayerNorm, nn.GroupNorm, nn.RMSNorm}
_SETTINGS = (
    "num_features", "eps", "momentum", "affine", "track_running_stats",
    "normalized_shape", "elementwise_affine", "num_groups", "num_channels",
)  # fmt: skip


def _as(cls: type[nn.Module], module: Any) -> nn.Module:
    """An instance of torch's class with the tensors and settings of ours."""
    made: nn.Module = object.__new__(cls)
    nn.Module.__init__(made)
    for setting in _SETTINGS:
        if hasattr(module, setting):
            setattr(made, setting, getattr(module, setting))
    made._parameters.update(module._parameters)
    keep = ("running_mean", "running_var", "num_batches_tracked")
    made._buffers.update({k: v for k, v in module._buffers.items() if k in keep})
    weight = module._parameters.get("weight")
    for buffer in ("running_mean", "running_var"):  # torch's layers of half precision want their own type
        value = made._buffers.get(buffer)
        if value is not None and weight is not None and value.dtype != weight.dtype:
            made._buffers[buffer] = value.to(weight.dtype)
    return made.eval()


def _as_graph(module: Any, activation: nn.Module | None, channel: int) -> nn.Module:
    """The norm's function, then the activation, over tensors that keep their names."""
    root = nn.Module()
    root._parameters.update(module._parameters)
    root._buffers.update({k: v for k, v in module._buffers.items() if k.startswith(("running_", "num_batches"))})
    graph = fx.Graph()
    x = y = graph.placeholder("input")

    def tensor(name: str) -> Any:
        return graph.get_attr(name) if getattr(root, name, None) is not None else None

    if isinstance(module, nn.LayerNorm):
        y = graph.call_function(
            nn.functional.layer_norm, (x, module.normalized_shape, tensor("weight"), tensor("bias"), module.eps)
        )
    elif isinstance(module, nn.RMSNorm):
        y = graph.call_function(nn.functional.rms_norm, (x, module.normalized_shape, tensor("weight"), module.eps))
    elif isinstance(module, nn.GroupNorm):
        y = graph.call_function(
            nn.functional.group_norm, (x, module.num_groups, tensor("weight"), tensor("bias"), module.eps)
        )
    else:
        if channel != 1:
            y = graph.call_method("movedim", (y, channel, 1))
        function = nn.functional.instance_norm if isinstance(module, _InstanceNorm) else nn.functional.batch_norm
        measured = root._buffers.get("running_mean") is None or bool(_measures(module))
        y = graph.call_function(
            function,
            (
                y,
                tensor("running_mean"),
                tensor("running_var"),
                tensor("weight"),
                tensor("bias"),
                measured,
                0.0,
                module.eps,
            ),
        )
        if channel != 1:
            y = graph.call_method("movedim", (y, 1, channel))
    if activation is not None:
        root.activation = activation
        y = graph.call_module("activation", (y,))
    graph.output(y)
    return fx.GraphModule(root, graph, type(module).__name__).eval()
