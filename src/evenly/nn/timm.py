"""For timm's ``norm_layer=``: a function, because timm replaces classes that it knows by name."""

from __future__ import annotations

from typing import Any

from evenly.core.activation import KINDS, activation_name
from evenly.nn.batchnorm import BatchNorm2d

# timm passes classes, its own among them, or names.
_FUSED = {
    "relu": "relu", "relu6": "relu6", "leakyrelu": "leaky_relu", "leaky_relu": "leaky_relu", "elu": "elu",
    "silu": "silu", "swish": "silu", "gelu": "gelu", "identity": None,
}  # fmt: skip


def timm_norm_act(
    num_features: int,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    affine: bool = True,
    track_running_stats: bool = True,
    apply_act: bool = True,
    act_layer: Any = None,
    act_kwargs: dict[str, Any] | None = None,
    inplace: bool = True,
    drop_layer: Any = None,
    device: Any = None,
    dtype: Any = None,
    **extras: Any,
) -> BatchNorm2d:
    """`evenly.BatchNorm2d` with its activation fused, by timm's ``BatchNormAct2d`` signature.

    timm replaces a class whose name it knows by its own, silently, in families that fuse norm
    and activation (EfficientNet, MobileNet); a function it calls, but without the model's
    activation, which must be bound beforehand. Other families (ResNet) apply their activations
    themselves: give them the class `evenly.BatchNorm2d`.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as in `evenly.BatchNorm2d`.
        apply_act: whether the activation is applied.
        act_layer: its class or name, as timm has it; ``"identity"`` for none.
        act_kwargs: its parameters.
        inplace: accepted and not needed: what the activation overwrites is not made.
        drop_layer: must be None.
        extras: `evenly.BatchNorm2d`'s.

    Raises:
        ValueError: the activation is not said, or none of those that can be fused, or a drop layer was asked for.

    Example:
        >>> from functools import partial
        >>> norm_layer = partial(timm_norm_act, act_layer="silu")      # for timm.create_model("efficientnet_b0", ...)
        >>> norm_layer(8)
        BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, ..., activation='silu')
    """
    if apply_act and act_layer is None:
        raise ValueError(
            "timm does not tell a function which activation the model uses; bind it, as in "
            'norm_layer=functools.partial(evenly.timm_norm_act, act_layer="silu") for EfficientNet, "relu6" for '
            "MobileNetV2."
        )
    if drop_layer is not None:
        raise ValueError(f"a drop layer between norm and activation is not fused, got {drop_layer!r}; use timm's own.")
    name, args = _fused(act_layer, act_kwargs) if apply_act else (None, ())
    return BatchNorm2d(
        num_features, eps, momentum, affine, track_running_stats, device, dtype,
        activation=activation_name(name), activation_args=args, **extras,
    )  # fmt: skip


def _fused(act_layer: Any, act_kwargs: dict[str, Any] | None) -> tuple[str | None, tuple[float, ...]]:
    """The activation's name and parameters, from its class or name."""
    asked = act_layer if isinstance(act_layer, str) else getattr(act_layer, "__name__", repr(act_layer))
    given = {name: value for name, value in (act_kwargs or {}).items() if name != "inplace"}
    name = _FUSED.get(asked.lower(), asked)
    parameters = [p for p, _ in KINDS[name].parameters] if name in KINDS else []
    if name not in KINDS or set(given) - set(parameters):
        raise ValueError(
            f"activation {asked!r} with {given} cannot be fused; known are {', '.join(_FUSED)}. "
            "Pass apply_act=False and add the activation behind."
        )
    return name, tuple(float(given[p]) for p in parameters if p in given)
