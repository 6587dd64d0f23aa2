"""A layer's call on Keras's torch backend, without the work around it where there is none to do.

`keras.layers.Layer.__call__` looks for much that is unusual before it comes to ``call``: inputs to
convert, masks, a graph to build, hooks, losses, another type or place to compute in. `open_to` asks
for all of these at once; where the answer to each is no, all that is left of Keras's call is
``call`` itself.

Each question stands for a step of `Layer.__call__`, `torch.nn.Module.__call__` or
`Operation.__call__` as of the versions of Keras that `READ` names. On any other the way is
closed, and Keras's own is taken, until somebody has read whether there are new steps.
"""

from __future__ import annotations

from typing import Any

import keras
import torch
from torch import Tensor
from torch.nn import Module

from evenly.keras.activation import fusible

READ = ("3.15.",)

try:  # Keras's and torch's own words for what is going on; none is public
    from keras.src.backend.common.global_state import get_global_attribute
    from torch.nn.modules.module import _has_any_global_hook

    known = keras.__version__.startswith(READ)
except ImportError:
    known = False

_LAYER_CALL, _MODULE_CALL = keras.layers.Layer.__call__, Module.__call__
DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}


def open_to(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether Keras's call of this layer would come to ``layer.call(args[0], training=phase(kwargs))``, and to no more.

    Args:
        layer: a norm whose class has no subclass's ways.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
    """
    if not known or len(args) != 1 or type(args[0]) is not Tensor:
        return False
    return _asked_plainly(args[0], kwargs) and _plain(layer, args[0]) and _unwatched(layer) and _eager()


def phase(kwargs: dict[str, Any]) -> bool | None:
    """What Keras takes for ``training``, and tells the layers that come after: the argument, else the caller's."""
    context = get_global_attribute("current_call_ctx")
    training: bool | None = kwargs["training"] if "training" in kwargs else context.get_value("training")
    context.set_value("training", training)
    return training


def _asked_plainly(x: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether the input has no mask, and there are no arguments but the phase, from a layer or model that calls."""
    if not (kwargs.keys() <= _ARGUMENTS and kwargs.get("mask") is None and type(kwargs.get("training")) in _PHASES):
        return False
    # A layer that is called by itself opens and closes a context, and forgets its losses of the last call.
    return getattr(x, "_keras_mask", None) is None and get_global_attribute("current_call_ctx") is not None


_ARGUMENTS = {"training", "mask"}  # a functional model gives mask=None, which is as good as none
_PHASES = (bool, type(None))


def _plain(layer: Any, x: Tensor) -> bool:
    """Whether the layer is built and takes this input as it is, and nothing is to be done with its output."""
    policy = layer._dtype_policy
    if not (
        layer._called
        and layer.built
        and type(policy) is keras.DTypePolicy  # neither quantized nor a map
        and DTYPES.get(policy.compute_dtype) is x.dtype
        and layer._call_context_args == _TRAINING
        and layer.activity_regularizer is None
        and layer._remat_mode is None
        and fusible(layer.activation)  # a function of the user's may fail, and Keras tells with which arguments
    ):
        return False
    if not _fits(layer.input_spec, x):
        layer._assert_input_compatibility(x)
    return True


def _fits(spec: Any, x: Tensor) -> bool:
    """Whether the input is plainly what a norm's specification asks for; if not, Keras's own look at it decides."""
    if type(spec) is not keras.layers.InputSpec or spec.dtype is not None or spec.shape is not None:
        return False
    if spec.min_ndim is not None or spec.max_ndim is not None or spec.ndim not in (None, x.ndim):
        return False
    shape = x.shape
    return all(size is None or shape[axis] == size for axis, size in spec.axes.items())


def bare(x: Tensor) -> bool:
    """Whether a variable's value is the tensor that it holds: nothing collects, casts or only asks for shapes."""
    return (
        known
        and not x.is_meta
        and get_global_attribute("stateless_scope") is None
        and get_global_attribute("autocast_scope") is None
    )


_TRAINING = {"training"}


def _unwatched(layer: Any) -> bool:
    """Whether nobody has put a hook or another function around calls of layers."""
    return not (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or layer._compiled_call_impl is not None
        or "forward" in vars(layer)
        or _has_any_global_hook()
        or keras.layers.Layer.__call__ is not _LAYER_CALL
        or Module.__call__ is not _MODULE_CALL
    )


def _eager() -> bool:
    """Whether the call is computed here and now: no graph, no scope that collects, no distribution."""
    return not (
        get_global_attribute("stateless_scope") is not None
        or get_global_attribute("distribution") is not None
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
    )
