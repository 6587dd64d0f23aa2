"""The one look at tensors whose memory a kernel reads by address.

A tensor's dispatch keys are what torch itself decides by: they tell a dense CPU tensor from meta,
sparse, mkldnn and nested ones, from a lazy negation or conjugation, from a tensor of zeros without
memory, from the wrappers of torch.func and from subclasses with a dispatch of their own. One number
is compared for all of them; a kind of tensor that torch adds tomorrow is not in the set.
"""

from __future__ import annotations

from functools import cache, reduce
from operator import or_

import torch
from torch import Tensor

_TYPES = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def _keys_of_plain_tensors() -> frozenset[int]:
    """The dispatch keys of ordinary CPU tensors, made in and out of inference mode."""
    keys = getattr(torch._C, "_dispatch_keys", None)
    if keys is None:
        return frozenset()
    found = set()
    for inference in (False, True):
        with torch.inference_mode(inference):
            found.add(keys(torch.empty(1, device="cpu")).raw_repr())
    return frozenset(found)


_PLAIN_KEYS = _keys_of_plain_tensors()


def has_memory(t: Tensor) -> bool:
    """Whether ``t`` is a CPU tensor with ordinary memory of its own, which may be read by address."""
    if _PLAIN_KEYS:
        return type(t) in _TYPES and torch._C._dispatch_keys(t).raw_repr() in _PLAIN_KEYS
    return _has_memory_by_properties(t)


def _has_memory_by_properties(t: Tensor) -> bool:
    """`has_memory` where torch does not show its dispatch keys."""
    return (
        type(t) in _TYPES
        and not _is_wrapped(t)
        and t.is_cpu
        and t.layout == torch.strided
        and not (t.is_neg() or t.is_conj() or torch._is_zerotensor(t) or t.is_nested)
    )


def is_ordinary(t: Tensor) -> bool:
    """Whether ``t`` is a tensor of torch's own on a real device: no subclass, no wrapper of a transform, not meta.

    A lazy negation, and zeros without memory, are ordinary: torch's operators read them.
    """
    if type(t) not in _TYPES or t.is_meta:
        return False
    if not _PLAIN_KEYS:
        return not _is_wrapped(t)
    keys: int = torch._C._dispatch_keys(t).raw_repr()
    return keys in _PLAIN_KEYS or keys | _ordinary_keys(t.device.type) == _ordinary_keys(t.device.type)


@cache
def _ordinary_keys(device: str) -> int:
    """All dispatch keys that an ordinary tensor of a device may have."""
    plain = torch.empty(1, device=device)
    tensors = (plain, torch._neg_view(plain), torch._efficientzerotensor(1, device=device))
    return reduce(or_, (torch._C._dispatch_keys(t).raw_repr() for t in tensors))


def _is_wrapped(t: Tensor) -> bool:
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(t) or torch._is_functional_tensor(t)
    return wrapped


def vector(name: str, t: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """``t`` as ``length`` contiguous numbers of ``dtype`` that may be read by address.

    Raises:
        ValueError: it has another length.
        RuntimeError: it lies on another device.
    """
    if t.dtype is dtype and t.numel() == length and t.is_contiguous() and has_memory(t):
        return t
    if t.numel() != length:
        raise ValueError(f"{name} has {t.numel()} elements where {length} are needed (shape {tuple(t.shape)}).")
    if t.device.type != "cpu":
        raise RuntimeError(f"{name} is on {t.device} while the input is on the CPU; move one to the other with .to().")
    return torch.empty(length, dtype=dtype, device="cpu").copy_(t.detach().reshape(-1))
