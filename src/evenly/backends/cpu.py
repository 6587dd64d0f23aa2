"""The CPU backend: the four steps and the fused pairs by the compiled kernels (``csrc``).

This file passes addresses and owns all memory; what the steps mean is said in
`evenly.backends.reference`. ``EVENLY_ISA`` forces an instruction set, ``EVENLY_POOL`` bounds the
memory kept for large outputs (mebibytes; 0 switches it off).
"""

from __future__ import annotations

import os

import torch  # before _cpu: its OpenMP runtime is the one both use
from torch import Tensor

from evenly import _cpu
from evenly.backends import composed, reference
from evenly.backends.pool import Pool, default_limit
from evenly.backends.reference import Sums
from evenly.backends.running import Running, update
from evenly.core.activation import Activation
from evenly.core.moments import Moments
from evenly.core.partition import Partition
from evenly.core.running import Constant

_NUMBER = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # as DType in csrc/kernels.hpp

pool = Pool(default_limit(), _cpu.advise_huge)


def serves(x: Tensor) -> bool:
    """Whether the kernels take tensors like ``x``."""
    return x.is_cpu and x.dtype in _NUMBER


def instruction_set() -> str:
    """The instruction set in use, such as ``"x86-64-v4"``."""
    return _cpu.isa()


def instruction_sets() -> list[str]:
    """Those that this machine can run, the best last."""
    return _cpu.isas()


def use_instruction_set(name: str) -> None:
    """Use another of `instruction_sets` from now on."""
    if not _cpu.use_isa(name):
        raise ValueError(f"instruction set {name!r} cannot run here; this machine runs {', '.join(_cpu.isas())}.")


if "EVENLY_ISA" in os.environ:
    use_instruction_set(os.environ["EVENLY_ISA"])


def forward(
    x: Tensor,
    partition: Partition,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: Activation,
    *,
    mask: Tensor | None = None,
    zeroing: Tensor | None = None,
    centered: bool = True,
    keep: bool = False,
    running: Running | None = None,
    spread: bool = True,
) -> tuple[Tensor, Moments, Tensor, Tensor | None]:
    """Steps 1 and 2 and the running statistics in one call; see `evenly.backends.composed.forward`."""
    mean, rstd = _statistics(x, partition), _statistics(x, partition)
    inside = running is None or _enters(running, mean.dtype)
    m2 = _statistics(x, partition) if spread or not inside else None
    count = partition.count if mask is None else _statistics(x, partition)
    y = pool.empty_like(x)
    saved = _call_forward(
        x, partition, weight, bias, residual, activation, mask, zeroing, y, mean, m2, rstd, count,
        eps, centered, True, keep, running if inside else None,
    )  # fmt: skip
    if saved is _NOT_WALKED:
        return composed.forward(
            reference, x, partition, eps, weight, bias, residual, activation,
            mask=mask, zeroing=zeroing, centered=centered, keep=keep, running=running,
        )  # fmt: skip
    moments = Moments(count, mean, m2)
    if not inside:
        assert running is not None
        update(running, moments)
    return y, moments, rstd, saved


def _statistics(x: Tensor, partition: Partition) -> Tensor:
    """Memory for one number of every set, in the type of statistics."""
    if x.dtype in _STATISTICS:
        return x.new_empty(partition.outer, partition.group)
    return x.new_empty((partition.outer, partition.group), dtype=torch.float32)


_STATISTICS = (torch.float32, torch.float64)  # what is its own type of statistics


def backward(
    dy: Tensor,
    x: Tensor,
    partition: Partition,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor | None,
    activation: Activation,
    count: int | Tensor,
    *,
    mask: Tensor | None = None,
    zeroing: Tensor | None = None,
    centered: bool = True,
    measured: bool = True,
    dresidual: bool = False,
    dx: bool = True,
    affine: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Steps 3 and 4 in one call; see `evenly.backends.composed.backward`."""
    dx_ = pool.empty_like(x) if dx else None
    dres = pool.empty_like(x) if dresidual else None
    summing, dweight, dbias = affine or (measured and dx), None, None
    if summing:
        dweight = mean.new_empty(partition.channels)
        dbias = torch.empty_like(dweight)
    walked = _call_backward(
        dy, x, partition, mean, rstd, weight, bias, saved, activation, count, mask, zeroing,
        None, None, dweight, dbias, dx_, dres, centered, measured, summing, dx or dresidual,
    )  # fmt: skip
    if not walked:
        return composed.backward(
            reference, dy, x, partition, mean, rstd, weight, bias, saved, activation, count, mask=mask,
            zeroing=zeroing, centered=centered, measured=measured, dresidual=dresidual, dx=dx, affine=affine,
        )  # fmt: skip
    return (dx_, dweight, dbias, dres) if affine else (dx_, None, None, dres)


class Pair:
    """`forward` and `backward` for calls that differ in addresses alone, so that little is left to do for each.

    There is no residual, no mask, and nothing saved but the input; weight and bias are contiguous
    and of the type of statistics, as running statistics are.
    """

    def __init__(
        self, partition: Partition, dtype: torch.dtype, activation: Activation, eps: float, centered: bool
    ) -> None:
        p = partition
        self._pair = _cpu.Pair(
            p.outer, p.batch, p.group, p.inner, p.channels, p.stride,
            _NUMBER[dtype], activation.kind.number, activation.arg, eps, centered,
        )  # fmt: skip
        self._sets, self._channels = (p.outer, p.group), p.channels
        self._dtype = dtype if dtype in _STATISTICS else torch.float32

    def takes(self, *vectors: Tensor | None) -> bool:
        """Whether vectors over the channels are as they must be."""
        for t in vectors:
            if t is not None and not (
                t.dtype is self._dtype and t.is_cpu and t.is_contiguous() and t.numel() == self._channels
            ):
                return False
        return True

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``(y, mean, rstd)``."""
        mean = x.new_empty(self._sets, dtype=self._dtype)
        y, rstd = pool.empty_like(x), torch.empty_like(mean)
        self._pair.forward(
            x.data_ptr(), 0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
            y.data_ptr(), mean.data_ptr(), rstd.data_ptr(), torch.get_num_threads(), *_running(running),
        )  # fmt: skip
        return y, mean, rstd

    def given(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        rstd: Tensor | None = None,
    ) -> Tensor:
        """The output by given statistics of the channels; ``rstd`` is written where it is wanted."""
        y = pool.empty_like(x)
        self._pair.given(
            x.data_ptr(), 0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
            y.data_ptr(), mean.data_ptr(), var.data_ptr(), 0 if rstd is None else rstd.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return y

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        *,
        measured: bool,
        dx: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """``(dx, dweight, dbias)``; dx where it is asked for."""
        dx_ = pool.empty_like(x) if dx else None
        dweight = mean.new_empty(self._channels)
        dbias = torch.empty_like(dweight)
        self._pair.backward(
            dy.data_ptr(), x.data_ptr(), 0 if weight is None else weight.data_ptr(),
            0 if bias is None else bias.data_ptr(), mean.data_ptr(), rstd.data_ptr(),
            dweight.data_ptr(), dbias.data_ptr(), 0 if dx_ is None else dx_.data_ptr(), measured,
            torch.get_num_threads(),
        )  # fmt: skip
        return dx_, dweight, dbias


def pair(x: Tensor, partition: Partition, activation: Activation, eps: float, *, centered: bool = True) -> Pair | None:
    """The `Pair` for inputs like ``x``, or None where the kernels have no loop."""
    made = Pair(partition, x.dtype, activation, eps, centered) if serves(x) else None
    return made if made is not None and made._pair.walks() else None


def moments(x: Tensor, partition: Partition, mask: Tensor | None = None, *, centered: bool = True) -> Moments:
    """Step 1; see `evenly.backends.reference.moments`."""
    mean, m2, rstd = (_statistics(x, partition) for _ in range(3))
    count = partition.count if mask is None else _statistics(x, partition)
    saved = _call_forward(
        x, partition, None, None, None, Activation(), mask, None, None, mean, m2, rstd, count,
        1.0, centered, True, False, None,
    )  # fmt: skip
    if saved is _NOT_WALKED:
        return reference.moments(x, partition, mask, centered=centered)
    return Moments(count, mean, m2)


def normalize(
    x: Tensor,
    partition: Partition,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: Activation,
    *,
    zeroing: Tensor | None = None,
    keep: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Step 2; see `evenly.backends.reference.normalize`."""
    y = pool.empty_like(x)
    saved = _call_forward(
        x, partition, weight, bias, residual, activation, None, zeroing, y, mean, None, rstd, 0,
        1.0, True, False, keep, None,
    )  # fmt: skip
    if saved is _NOT_WALKED:
        return reference.normalize(
            x, partition, mean, rstd, weight, bias, residual, activation, zeroing=zeroing, keep=keep
        )
    return y, saved


def backward_sums(
    dy: Tensor,
    x: Tensor,
    partition: Partition,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor | None,
    activation: Activation,
    *,
    zeroing: Tensor | None = None,
) -> Sums:
    """Step 3; see `evenly.backends.reference.backward_sums`."""
    sets = (partition.outer, partition.group)
    g, gx, dweight, dbias = (mean.new_empty(size) for size in (sets, sets, partition.channels, partition.channels))
    walked = _call_backward(
        dy, x, partition, mean, rstd, weight, bias, saved, activation, 0, None, zeroing,
        g, gx, dweight, dbias, None, None, True, True, True, False,
    )  # fmt: skip
    if not walked:
        return reference.backward_sums(dy, x, partition, mean, rstd, weight, bias, saved, activation, zeroing=zeroing)
    return Sums(g, gx, dweight, dbias)


def backward_input(
    dy: Tensor,
    x: Tensor,
    partition: Partition,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor | None,
    activation: Activation,
    sums: Sums | None,
    count: int | Tensor,
    *,
    mask: Tensor | None = None,
    zeroing: Tensor | None = None,
    centered: bool = True,
    dresidual: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Step 4; see `evenly.backends.reference.backward_input`."""
    dx = pool.empty_like(x)
    dres = pool.empty_like(x) if dresidual else None
    g, gx = (None, None) if sums is None else (_plain(t, mean.dtype) for t in sums[:2])
    walked = _call_backward(
        dy, x, partition, mean, rstd, weight, bias, saved, activation, count, mask, zeroing,
        g, gx, None, None, dx, dres, centered, sums is not None, False, True,
    )  # fmt: skip
    if not walked:
        return reference.backward_input(
            dy, x, partition, mean, rstd, weight, bias, saved, activation, sums, count,
            mask=mask, zeroing=zeroing, centered=centered, dresidual=dresidual,
        )  # fmt: skip
    return dx, dres


_NOT_WALKED = torch.empty(0)  # in place of `saved`: the kernels have no loop for this partition


def _call_forward(
    x: Tensor,
    p: Partition,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: Activation,
    mask: Tensor | None,
    zeroing: Tensor | None,
    y: Tensor | None,
    mean: Tensor,
    m2: Tensor | None,
    rstd: Tensor,
    count: int | Tensor,
    eps: float,
    centered: bool,
    measure: bool,
    keep: bool,
    running: Running | None,
) -> Tensor | None:
    """The compiled call; returns what backward needs besides ``x``, or `_NOT_WALKED`."""
    dtype, kind = mean.dtype, activation.kind
    weight, bias, mean, rstd = _plain(weight, dtype), _plain(bias, dtype), mean.contiguous(), rstd.contiguous()
    weights = zeroing if mask is None else mask
    if weights is not None:
        weights = _plain(weights, dtype)
    saved = bits = None
    if residual is not None:
        residual = residual if residual.dtype is x.dtype else residual.to(x.dtype)
        if keep and kind.slope == "sign":
            saved = bits = pool.empty_bytes((p.numel + 7) // 8)
        elif keep and kind.slope != "none":
            saved = residual
    walked = _cpu.forward(
        p.outer, p.batch, p.group, p.inner, p.channels, p.stride, _NUMBER[x.dtype], kind.number, activation.arg,
        x.data_ptr(), _at(residual), _at(weight), _at(bias),
        _at(weights), weights is not None and weights.numel() != p.positions, mask is not None, zeroing is not None,
        _at(y), _at(bits), mean.data_ptr(), _at(m2), rstd.data_ptr(), _at(count if isinstance(count, Tensor) else None),
        eps, centered, measure, y is not None, torch.get_num_threads(), *_running(running),
    )  # fmt: skip
    return saved if walked else _NOT_WALKED


def _call_backward(
    dy: Tensor,
    x: Tensor,
    p: Partition,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor | None,
    activation: Activation,
    count: int | Tensor,
    mask: Tensor | None,
    zeroing: Tensor | None,
    g: Tensor | None,
    gx: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    dx: Tensor | None,
    dres: Tensor | None,
    centered: bool,
    measured: bool,
    sum_: bool,
    input_: bool,
) -> bool:
    """The compiled call; whether it was made. Where g and gx are None, step 3 passes its own on to step 4."""
    dtype = mean.dtype
    weight, bias, mean, rstd = _plain(weight, dtype), _plain(bias, dtype), mean.contiguous(), rstd.contiguous()
    weights = _plain(zeroing if mask is None else mask, dtype)
    bits = saved if saved is not None and saved.dtype is torch.uint8 else None
    counts = _plain(count, dtype) if isinstance(count, Tensor) else None
    return _cpu.backward(
        p.outer, p.batch, p.group, p.inner, p.channels, p.stride, _NUMBER[x.dtype],
        activation.kind.number, activation.arg,
        dy.data_ptr(), x.data_ptr(), _at(saved if bits is None else None), _at(bits), _at(weight), _at(bias),
        _at(weights), weights is not None and weights.numel() != p.positions, mask is not None, zeroing is not None,
        mean.data_ptr(), rstd.data_ptr(), _at(counts), 0 if isinstance(count, Tensor) else count,
        _at(g), _at(gx), _at(dweight), _at(dbias), _at(dx), _at(dres), centered, measured, sum_, input_,
        torch.get_num_threads(),
    )  # fmt: skip


def _at(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _plain(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """``t`` in the type of statistics, contiguous; the caller keeps it alive."""
    if t is None or (t.dtype is dtype and t.is_contiguous()):
        return t
    return t.detach().to(dtype).contiguous()


def _enters(running: Running, dtype: torch.dtype) -> bool:
    """Whether the kernel can write these buffers itself."""
    mean, var = running.mean, running.var
    alike = mean.dtype is dtype and var.dtype is dtype and mean.shape == var.shape
    return alike and mean.is_contiguous() and var.is_contiguous()


def _running(running: Running | None) -> tuple[int, int, int, int, float, bool, bool]:
    if running is None:
        return 0, 0, 0, 0, 0.0, True, True
    mean, var, average, batches, skipped, unbiased, skip_nonfinite, _ = running
    factor = average.weight if type(average) is Constant else average(1 if batches is None else int(batches) + 1)
    return (
        mean.data_ptr(), var.data_ptr(), 0 if batches is None else batches.data_ptr(),
        0 if skipped is None else skipped.data_ptr(), factor, unbiased, skip_nonfinite,
    )  # fmt: skip
