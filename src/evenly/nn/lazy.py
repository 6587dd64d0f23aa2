"""``num_features=None``: a layer that learns its number of channels from its first input."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter


class Waiting(LazyModuleMixin, _NormBase):
    """What a waiting layer does more than the layer it becomes (a mixin, by torch's protocol)."""

    def reset_parameters(self) -> None:
        """Nothing, until there is something."""
        if not self.has_uninitialized_params() and self.num_features != 0:
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor, *args: Any, **kwargs: Any) -> None:
        """Take the number of channels from the first input."""
        if self.has_uninitialized_params():
            self.num_features = input.shape[getattr(self, "channel", 1)]
            for t in (*self._parameters.values(), *self._buffers.values()):
                if isinstance(t, UninitializedParameter | UninitializedBuffer):
                    t.materialize((self.num_features,))
            self.reset_parameters()


def wait_for_input(layer: _NormBase) -> None:
    """Make ``layer``, constructed without channels, wait for its first input (or a state_dict)."""
    for name, parameter in layer._parameters.items():
        if parameter is not None:
            layer._parameters[name] = UninitializedParameter(**_like(parameter))  # type: ignore[assignment]
    for name in ("running_mean", "running_var"):
        buffer = layer._buffers[name]
        if buffer is not None:
            layer._buffers[name] = UninitializedBuffer(**_like(buffer))
    layer.__class__ = waiting(type(layer))  # type: ignore[assignment]
    assert isinstance(layer, LazyModuleMixin)
    layer._load_hook = layer._register_load_state_dict_pre_hook(layer._lazy_load_hook)
    layer._initialize_hook = layer.register_forward_pre_hook(layer._infer_parameters, with_kwargs=True)


def _like(t: Tensor) -> dict[str, Any]:
    return {"device": t.device, "dtype": t.dtype}


def waiting(cls: type[nn.Module]) -> type[nn.Module]:
    """The class of a ``cls`` that still waits; it becomes a ``cls`` with its first input."""
    if cls not in _WAITING:
        body = {"cls_to_become": cls, "__module__": __name__, "__doc__": cls.__doc__, "__reduce_ex__": _reduce}
        _WAITING[cls] = type(cls.__name__, (Waiting, cls), body)
    return _WAITING[cls]


_WAITING: dict[type[nn.Module], type[nn.Module]] = {}


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    """Pickle by the class it becomes: the waiting class is made where it is needed."""
    return _empty, (self.cls_to_become,), self.__getstate__()


def _empty(cls: type[nn.Module]) -> nn.Module:
    made = waiting(cls)
    return made.__new__(made)
