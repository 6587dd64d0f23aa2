"""The CPU backend: the four steps and the two passes by the compiled kernels (``csrc``).

This file passes addresses, owns all memory, and looks (`evenly.backends.guard`) at every tensor
whose address it passes; what the steps mean is said in `evenly.backends.kernel`. ``EVENLY_ISA``
forces an instruction set, ``EVENLY_POOL`` bounds the memory kept for large outputs (mebibytes; 0
switches it off).
"""

from __future__ import annotations

import os
from functools import lru_cache

import torch  # before _cpu: its OpenMP runtime is the one both use
from torch import Tensor

from evenly import _cpu
from evenly.backends import kernel
from evenly.backends.guard import fit, has_memory, readable, vector
from evenly.backends.memory import statistics_dtype
from evenly.backends.pool import Pool, default_limit
from evenly.backends.records import Given, Gradients, Kept, Sums, Tensors, Wanted
from evenly.backends.running import Running, update
from evenly.core.moments import Moments
from evenly.core.norm import Norm
from evenly.core.running import Constant

_NUMBER = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # as DType in csrc/kernels.hpp
_CPU = torch.device("cpu")

pool = Pool(default_limit(), _cpu.advise_huge)


def serves(x: Tensor) -> bool:
    """Whether the kernels take tensors of this device, type and layout; the guard sees to each one."""
    return x.dtype in _NUMBER and x.is_cpu and x.layout == torch.strided


def prepare(norm: Norm, x: Tensor, order: tuple[int, ...]) -> Kernel | None:
    """The kernel for inputs like ``x``, or None where the kernels have no walk."""
    made = Kernel(norm, x, order)
    return made if made.walks else None


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


class Kernel(kernel.Kernel):
    """The compiled kernel for inputs of one shape, layout and type.

    Args:
        norm: what is constant.
        x: an input like all that will come, dense in ``order``.
        order: the axes in memory order.
    """

    name = "cpu"
    guards = True

    def __init__(self, norm: Norm, x: Tensor, order: tuple[int, ...]) -> None:
        super().__init__(norm, order)
        p = norm.partition
        self._norm = _cpu.Norm(
            partition=[p.outer, p.batch, p.group, p.inner, p.channels, p.stride], dtype=_NUMBER[x.dtype],
            activation=norm.activation.kind.number, argument=norm.activation.arg, eps=norm.eps,
            centered=norm.centered, zero_masked=norm.zero_masked,
        )  # fmt: skip
        self.walks: bool = self._norm.walks(False)
        self._walks_masked: bool = self._norm.walks(True)
        self._shape, self._stride, self._dtype = x.shape, x.stride(), x.dtype
        self._dtype_of_statistics = statistics_dtype(x.dtype)
        self._count, self._channels, self._sets = p.count, p.channels, p.sets
        self._positions, self._numel = p.positions, p.numel
        self._per_set = _like(self._dtype_of_statistics, p.outer, p.group)
        self._per_channel = _like(self._dtype_of_statistics, p.channels)

    def forward(
        self, x: Tensor, tensors: Tensors, statistics: Running | Given | None, *, keep: bool, spread: bool = False
    ) -> tuple[Tensor, Kept]:
        """Steps 1 and 2 and the running statistics in one visit, or step 2 by given statistics."""
        if isinstance(statistics, Given):
            return self._forward_given(x, tensors, statistics, keep=keep)
        x = self._laid(x)
        y, mean, rstd = pool.empty_like(x), torch.empty_like(self._per_set), torch.empty_like(self._per_set)
        inside = None if statistics is None else self._running(statistics)
        m2 = torch.empty_like(self._per_set) if spread or (statistics is not None and inside is None) else None
        counts = None if tensors.mask is None else torch.empty_like(self._per_set)
        record, tensors = self._record(tensors)
        slope, bits = self._slope_memory(tensors.residual) if keep and tensors.residual is not None else (None, 0)
        self._norm.measure(
            x.data_ptr(), y.data_ptr(), record,
            _cpu.Kept(mean.data_ptr(), rstd.data_ptr(), _at(m2), _at(counts), bits), inside, torch.get_num_threads(),
        )  # fmt: skip
        count = self._count if counts is None else counts
        if statistics is not None and inside is None:
            update(statistics, Moments(count, mean, m2))
        return y, Kept(mean, rstd, count, slope, True, m2)

    def _forward_given(self, x: Tensor, tensors: Tensors, given: Given, *, keep: bool) -> tuple[Tensor, Kept]:
        """Step 2 by mean and variance of the channels; with ``keep`` of a copy, since a batch may be entered before."""
        x = self._laid(x)
        y = pool.empty_like(x)
        mean, var = self._vector("running_mean", given.mean), self._vector("running_var", given.var)
        rstd = mean
        if keep:
            mean, rstd = torch.empty_like(self._per_set).copy_(mean), torch.empty_like(self._per_set)
        record, tensors = self._record(tensors)
        slope, bits = self._slope_memory(tensors.residual) if keep and tensors.residual is not None else (None, 0)
        self._norm.given(
            x.data_ptr(), y.data_ptr(), record,
            _cpu.Kept(mean.data_ptr(), rstd.data_ptr() if keep else 0, 0, 0, bits), var.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return y, Kept(mean, rstd, self._count, slope, False)

    def backward(self, dy: Tensor, x: Tensor, tensors: Tensors, kept: Kept, wanted: Wanted) -> Gradients:
        """Steps 3 and 4 in one visit."""
        dy, x = self._laid(dy), self._laid(x)
        dx = pool.empty_like(x) if wanted.dx else None
        dresidual = pool.empty_like(x) if wanted.dresidual else None
        dweight = dbias = None
        if any(wanted) if kept.measured else wanted.affine:  # the second sweep reads the sums, for dresidual too
            dweight, dbias = torch.empty_like(self._per_channel), torch.empty_like(self._per_channel)
        record, left, alive = self._left(tensors, kept)
        self._norm.backward(
            dy.data_ptr(), x.data_ptr(), record, left,
            _cpu.Wanted(_at(dx), _at(dresidual), _at(dweight), _at(dbias)), kept.measured, torch.get_num_threads(),
        )  # fmt: skip
        del alive
        return Gradients(dx, dweight, dbias, dresidual) if wanted.affine else Gradients(dx, None, None, dresidual)

    def moments(self, x: Tensor, mask: Tensor | None = None) -> Moments:
        """Step 1."""
        x = self._laid(x)
        mean, rstd, m2 = (torch.empty_like(self._per_set) for _ in range(3))
        count = self._count if mask is None else torch.empty_like(self._per_set)
        record, alive = self._record(Tensors(mask=mask))
        self._norm.measure(
            x.data_ptr(), 0, record,
            _cpu.Kept(mean.data_ptr(), rstd.data_ptr(), m2.data_ptr(), _at(count)), None, torch.get_num_threads(),
        )  # fmt: skip
        del alive
        return Moments(count, mean, m2)

    def normalize(
        self, x: Tensor, tensors: Tensors, mean: Tensor, rstd: Tensor, *, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Step 2."""
        x = self._laid(x)
        y = pool.empty_like(x)
        mean, rstd = self._statistic("mean", mean), self._statistic("rstd", rstd)
        record, tensors = self._record(tensors)
        slope, bits = self._slope_memory(tensors.residual) if keep and tensors.residual is not None else (None, 0)
        left = _cpu.Kept(mean.data_ptr(), rstd.data_ptr(), 0, 0, bits)
        self._norm.normalize(x.data_ptr(), y.data_ptr(), record, left, torch.get_num_threads())
        return y, slope

    def backward_sums(self, dy: Tensor, x: Tensor, tensors: Tensors, kept: Kept) -> Sums:
        """Step 3."""
        dy, x = self._laid(dy), self._laid(x)
        sums = Sums(*(torch.empty_like(t) for t in (self._per_set, self._per_set, *[self._per_channel] * 2)))
        record, left, alive = self._left(tensors, kept)
        wanted = _cpu.Wanted(0, 0, _at(sums.dweight), _at(sums.dbias), _at(sums.g), _at(sums.gx))
        self._norm.sums(dy.data_ptr(), x.data_ptr(), record, left, wanted, torch.get_num_threads())
        del alive
        return sums

    def backward_input(
        self, dy: Tensor, x: Tensor, tensors: Tensors, kept: Kept, sums: Sums | None, *, dresidual: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Step 4."""
        dy, x = self._laid(dy), self._laid(x)
        dx, dres = pool.empty_like(x), pool.empty_like(x) if dresidual else None
        g, gx = (None, None) if sums is None else (self._statistic("g", sums.g), self._statistic("gx", sums.gx))
        record, left, alive = self._left(tensors, kept)
        wanted = _cpu.Wanted(dx.data_ptr(), _at(dres), 0, 0, _at(g), _at(gx))
        self._norm.input(
            dy.data_ptr(), x.data_ptr(), record, left, wanted, sums is not None, torch.get_num_threads()
        )  # fmt: skip
        del alive
        return dx, dres

    def _laid(self, t: Tensor) -> Tensor:
        """``t``, of the input's shape, in the memory that the walk goes over: itself where it lies so, else a copy."""
        if has_memory(t) and t.dtype is self._dtype and t.stride() == self._stride and t.shape == self._shape:
            return t
        if t.shape != self._shape:
            raise ValueError(f"a tensor of shape {tuple(t.shape)} came where {tuple(self._shape)} is normalized.")
        laid = torch.empty_strided(self._shape, self._stride, dtype=self._dtype, device=_CPU)
        return laid.copy_(readable(t))

    def _vector(self, name: str, t: Tensor) -> Tensor:
        return vector(name, t, self._channels, self._dtype_of_statistics)

    def _statistic(self, name: str, t: Tensor) -> Tensor:
        return vector(name, t, self._sets, self._dtype_of_statistics)

    def _record(self, tensors: Tensors) -> tuple[_cpu.Tensors, Tensors]:
        """The addresses, and the tensors behind them, which the caller keeps alive."""
        weight, bias, residual, mask = tensors
        if not fit(self._dtype_of_statistics, self._channels, weight, bias):
            weight = None if weight is None else self._vector("weight", weight)
            bias = None if bias is None else self._vector("bias", bias)
            tensors = Tensors(weight, bias, residual, mask)
        if residual is None and mask is None:
            at = 0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr()
            return _cpu.Tensors(*at), tensors
        if residual is not None:
            residual = self._laid(residual)
        elements = mask is not None and mask.numel() != self._positions
        if mask is not None:
            if not self._walks_masked:
                raise ValueError("layer norm over channels takes no mask.")
            mask = vector("mask", mask, self._numel if elements else self._positions, self._dtype_of_statistics)
        record = _cpu.Tensors(_at(weight), _at(bias), _at(residual), _at(mask), elements)
        return record, Tensors(weight, bias, residual, mask)

    def _left(self, tensors: Tensors, kept: Kept) -> tuple[_cpu.Tensors, _cpu.Kept, tuple[object, ...]]:
        """What forward left, as addresses, and the tensors behind them, which the caller keeps alive."""
        mean, rstd, count, slope, _, _ = kept
        if not fit(self._dtype_of_statistics, self._sets, mean, rstd):
            mean, rstd = self._statistic("mean", mean), self._statistic("rstd", rstd)
        if slope is None and tensors.mask is None and not isinstance(count, Tensor):
            record, alive = self._record(tensors)
            return record, _cpu.Kept(mean.data_ptr(), rstd.data_ptr(), 0, 0, 0, count), (mean, rstd, alive)
        bits = residual = None
        if slope is not None and slope.dtype is torch.uint8:
            bits = vector("slopes", slope, -(-self._numel // 8), torch.uint8)
        elif slope is not None:
            residual = slope
        record, alive = self._record(Tensors(tensors.weight, tensors.bias, residual, tensors.mask))
        counts = self._statistic("count", count) if isinstance(count, Tensor) else None
        left = _cpu.Kept(
            mean.data_ptr(), rstd.data_ptr(), 0, _at(counts), _at(bits), 0.0 if isinstance(count, Tensor) else count
        )
        return record, left, (mean, rstd, bits, counts, alive)

    def _slope_memory(self, residual: Tensor) -> tuple[Tensor | None, int]:
        """What is kept for the slope of a sum with a residual, and where its bits are written (0: nowhere)."""
        slope = self.norm.activation.kind.slope
        if slope == "none":
            return None, 0
        if slope != "sign":
            return residual, 0
        bits = pool.empty_bytes((self._numel + 7) // 8)
        return bits, bits.data_ptr()

    def _running(self, running: Running) -> _cpu.Running | None:
        """The buffers as addresses, or None where `update` must write them."""
        mean, var, average, batches, skipped, unbiased, skip_nonfinite, pending, _ = running
        if pending is not None or not fit(self._dtype_of_statistics, self._channels, mean, var):
            return None
        if not fit(torch.int64, 1, batches, skipped):  # a counter of another type
            return None
        seen = 1 if type(average) is Constant or batches is None else int(batches) + 1
        factor = average(seen)
        return _cpu.Running(
            mean.data_ptr(), var.data_ptr(), 0 if batches is None else batches.data_ptr(),
            0 if skipped is None else skipped.data_ptr(), factor, unbiased, skip_nonfinite,
        )  # fmt: skip


@lru_cache(maxsize=1024)
def _like(dtype: torch.dtype, *shape: int) -> Tensor:
    """What `torch.empty_like` makes vectors of a call like: a tensor of one number, expanded.

    Kernels share them: small things that live long, allocated between large ones that do not, would
    keep the allocator from giving memory back.
    """
    return torch.empty(1, dtype=dtype, device=_CPU).expand(*shape)


def _at(t: Tensor | int | None) -> int:
    return t.data_ptr() if isinstance(t, Tensor) else 0
