"""The one look at tensors whose memory a kernel reads by address.

A tensor's dispatch keys are what torch itself decides by: they tell a dense CPU tensor from meta,
sparse, mkldnn and nested ones, from a lazy negation or conjugation, from a tensor of zeros without
memory, from the wrappers of torch.func and from subclasses with a dispatch of their own. One number
is compared for all of them; a kind of tensor that torch adds tomorrow is not in the set.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor

_TYPES = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
_keys: Any = getattr(torch._C, "_dispatch_keys", None)  # private to torch, so its absence is provided for


def _keys_of_plain_tensors() -> frozenset[int]:
    """The dispatch keys of ordinary CPU tensors, made in and out of inference mode."""
    found = set()
    for inference in (False, True) if _keys is not None else ():
        with torch.inference_mode(inference):
            found.add(_keys(torch.empty(1, device="cpu")).raw_repr())
    return frozenset(found)


_PLAIN_KEYS = _keys_of_plain_tensors()


def has_memory(t: Tensor) -> bool:
    """Whether ``t`` is a CPU tensor with ordinary memory of its own, which may be read by address."""
    return type(t) in _TYPES and _keys(t).raw_repr() in _PLAIN_KEYS


def _has_memory_by_properties(t: Tensor) -> bool:
    """`has_memory` where torch does not show its dispatch keys."""
    return (
        type(t) in _TYPES
        and not _is_wrapped(t)
        and t.is_cpu
        and t.layout == torch.strided
        and not (t.is_neg() or t.is_conj() or torch._is_zerotensor(t) or t.is_nested)
    )


if _keys is None:
    has_memory = _has_memory_by_properties


def is_ordinary(t: Tensor) -> bool:
    """Whether ``t`` is a tensor of torch's own on a real device: no subclass, no wrapper of a transform, not meta.

    A lazy negation, and zeros without memory, are ordinary: torch's operators read them.
    """
    if type(t) not in _TYPES or t.is_meta:
        return False
    if not _PLAIN_KEYS:
        return not _is_wrapped(t)
    keys: int = _keys(t).raw_repr()
    return keys in _PLAIN_KEYS or keys | _ordinary_keys(t.device.type) == _ordinary_keys(t.device.type)


def all_ordinary(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all tensors that are given are ordinary; most are plain, and one look shows it."""
    for t in tensors:
        if t is not None and not has_memory(t) and not is_ordinary(t):
            return False
    return True


@cache
def _ordinary_keys(device: str) -> int:
    """All dispatch keys that an ordinary tensor of a device may have."""
    plain = torch.empty(1, device=device)
    tensors = (plain, torch._neg_view(plain), torch._efficientzerotensor(1, device=device))
    keys: int = reduce(or_, (_keys(t).raw_repr() for t in tensors))
    return keys


def _is_wrapped(t: Tensor) -> bool:
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(t) or torch._is_functional_tensor(t)
    return wrapped


class UnreadableError(TypeError):
    """A tensor came that only torch's operators can read: a transform's, a subclass's, one without memory."""


def readable(t: Tensor) -> Tensor:
    """``t`` without its graph, to be copied from by torch's operators.

    Raises:
        UnreadableError: a copy would lose what ``t`` stands for.
    """
    if not is_ordinary(t):
        raise UnreadableError(f"a {type(t).__name__} cannot be read by a kernel; the reference can.")
    return t.detach()


def fit(dtype: torch.dtype, length: int, *vectors: Tensor | None) -> bool:
    """Whether all vectors that are given are ``length`` contiguous numbers of ``dtype`` that may be read by address."""
    for t in vectors:
        if t is not None and not (t.dtype is dtype and t.numel() == length and t.is_contiguous() and has_memory(t)):
            return False
    return True


def vector(name: str, t: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """``t`` as ``length`` contiguous numbers of ``dtype`` that may be read by address.

    Raises:
        ValueError: it has another length.
        RuntimeError: it lies on another device.
    """
    if fit(dtype, length, t):
        return t
    if t.numel() != length:
        raise ValueError(f"{name} has {t.numel()} elements where {length} are needed (shape {tuple(t.shape)}).")
    if t.device.type != "cpu":
        raise RuntimeError(f"{name} is on {t.device} while the input is on the CPU; move one to the other with .to().")
    return torch.empty(length, dtype=dtype, device="cpu").copy_(readable(t).reshape(-1))
