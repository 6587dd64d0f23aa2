"""The CPU kernels: accuracy, determinism, threads, instruction sets, what they save."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import evenly
from evenly import backends
from evenly.backends import reference
from evenly.backends.running import Running, update
from evenly.core.activation import IDENTITY, Activation
from evenly.core.moments import Moments
from evenly.core.partition import Partition
from evenly.core.running import average

cpu = pytest.importorskip("evenly.backends.cpu", reason="the kernels are not built")
RELU = Activation.of("relu")
LAYOUTS = {
    "planes": ((8, 6, 40, 40), Partition.of_batch((8, 6, 40, 40), 1)),
    "short planes": ((32, 6, 7, 7), Partition.of_batch((32, 6, 7, 7), 1)),
    "columns": ((8, 40, 40, 6), Partition.of_batch((8, 40, 40, 6), 3)),
    "rows": ((64, 1000), Partition.of_layer((64, 1000), 1)),
}


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    source = str(Path(backends.__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": source, **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_sweep_is_as_accurate_as_two(layout: str) -> None:
    """At mean 1e4, deviation 1, the error is at most 4 times that of an exact two-pass float32 computation."""
    shape, partition = LAYOUTS[layout]
    x = torch.randn(shape) + 1e4
    exact = reference.moments(x.double(), partition)
    truth, _ = reference.normalize(
        x.double(), partition, exact.mean, torch.rsqrt(exact.var + 1e-5), None, None, None, IDENTITY
    )
    # Two passes with exact sums, everything else in float32.
    mean = exact.mean.float()
    deviation = x.reshape(partition.shape) - mean[:, None, :, None]
    var = deviation.double().square().mean((1, 3)).float()
    two_pass = deviation * torch.rsqrt(var + 1e-5)[:, None, :, None]

    y, _, _, _ = cpu.forward(x, partition, 1e-5, None, None, None, IDENTITY)

    allowed = 4 * (two_pass.reshape(shape).double() - truth).abs().max()
    assert (y.double() - truth).abs().max() <= allowed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_outliers_first_do_not_spoil_the_shift(layout: str) -> None:
    """A set that begins far from its mean (a padded border, say) keeps its variance to float32 rounding."""
    shape, partition = LAYOUTS[layout]
    x = torch.randn(shape) + 100
    x[:1] = 0
    exact = reference.moments(x.double(), partition)

    found = cpu.moments(x, partition)

    torch.testing.assert_close(found.mean.double(), exact.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.m2.double(), exact.m2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_input_same_bits(layout: str, threads: int) -> None:
    """Twice the same call with the same threads gives the same bits, forward and backward."""
    shape, partition = LAYOUTS[layout]
    x, dy = torch.randn(shape), torch.randn(shape)
    weight = torch.rand(partition.channels)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = []
        for _ in range(2):
            y, m, rstd, saved = cpu.forward(x, partition, 1e-5, weight, None, None, RELU, keep=True)
            grads = cpu.backward(dy, x, partition, m.mean, rstd, weight, None, saved, RELU, m.count)
            runs.append([y, m.mean, m.m2, *grads[:3]])
    finally:
        torch.set_num_threads(before)

    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("first", ["torch", "evenly"])
def test_one_openmp_runtime(first: str) -> None:
    """The kernels run on torch's OpenMP, whichever package is imported first."""
    code = (
        f"import {first}\nimport torch, evenly\nimport evenly.backends.cpu\n"
        "from evenly.versions import openmp_runtimes\nprint(len(openmp_runtimes()))"
    )

    assert python(code) == "1"


@pytest.mark.parametrize("isa", cpu.instruction_sets())
def test_a_variable_forces_the_instruction_set(isa: str) -> None:
    """`EVENLY_ISA` chooses the compiled copy at import."""
    assert python("from evenly.backends import cpu; print(cpu.instruction_set())", EVENLY_ISA=isa) == isa


def test_unknown_instruction_set_is_refused() -> None:
    """The error names what this machine can run."""
    with pytest.raises(ValueError, match=cpu.instruction_sets()[0]):
        cpu.use_instruction_set("mmx")


def test_a_forked_child_computes() -> None:
    """After fork the team of threads is gone; the child works alone and does not wait for it."""
    code = """
import os, torch, evenly
layer, x = evenly.BatchNorm2d(64), torch.randn(8, 64, 32, 32)
expected = layer(x)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # torch's own operators would wait for their team
    os._exit(0 if torch.allclose(layer(x), expected, atol=1e-5) else 1)
print(os.waitpid(child, 0)[1])
"""

    assert python(code) == "0"


def test_relu_saves_the_input_and_four_numbers_a_channel() -> None:
    """Nothing else of the size of the input is kept for backward."""
    shape, partition = LAYOUTS["planes"]
    x = torch.randn(shape)

    _, moments, rstd, saved = cpu.forward(x, partition, 1e-5, torch.ones(6), torch.ones(6), None, RELU, keep=True)

    assert saved is None
    assert moments.mean.numel() + rstd.numel() == 2 * 6


def test_a_residual_costs_one_bit_an_element() -> None:
    """With a residual and ReLU the signs are kept, eight to a byte, as `slope_of_bits` reads them."""
    shape, partition = LAYOUTS["short planes"]
    x, residual = torch.randn(shape), torch.randn(shape)

    y, _, _, saved = cpu.forward(x, partition, 1e-5, None, None, residual, RELU, keep=True)

    assert saved is not None
    assert saved.nbytes == (x.numel() + 7) // 8
    assert torch.equal(reference.slope_of_bits(saved, x, RELU), (y > 0).float())


def test_bits_that_belong_to_no_element_are_zero() -> None:
    """Equal calls give equal bytes: the memory of the bits is not zeroed beforehand, its end is."""
    x, residual = torch.randn(3, 5, 7), torch.ones(3, 5, 7)
    partition = Partition.of_batch(x.shape)
    for _ in range(8):
        dirty = torch.full((14,), 255, dtype=torch.uint8)
        del dirty
        saved = cpu.forward(x, partition, 1e-5, None, None, residual, RELU, keep=True)[3]

        assert saved is not None
        assert int(saved[-1]) >> 105 % 8 == 0


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("ghosts", [1, 2])
def test_running_statistics_follow_the_rule(ghosts: int, unbiased: bool, skip: bool) -> None:
    """The kernels enter good, empty-looking and spoiled batches as `running.update` does."""
    partition = Partition.of_batch((4, 3, 5, 5), 1, ghosts)
    batches = [torch.randn(4, 3, 5, 5) for _ in range(4)]
    batches[1][0, 0, 0, 0] = float("nan")
    found, truth = (_buffers(unbiased, skip) for _ in range(2))

    for x in batches:
        m = reference.moments(x, partition)
        update(truth, Moments(m.count, m.mean, m.m2))
        cpu.forward(x, partition, 1e-5, None, None, None, IDENTITY, running=found)

    torch.testing.assert_close(found.mean, truth.mean, equal_nan=True)
    torch.testing.assert_close(found.var, truth.var, equal_nan=True)
    assert found.batches is not None
    assert (found.batches, found.skipped) == (truth.batches, truth.skipped)


def _buffers(unbiased: bool, skip: bool) -> Running:
    return Running(
        torch.zeros(3), torch.ones(3), average("debiased", 0.1), torch.tensor(0), torch.tensor(0), unbiased, skip
    )


def test_empty_input() -> None:
    """No samples: an empty output, zero gradients, no division by zero."""
    partition = Partition.of_batch((0, 3, 4, 4), 1)
    x = torch.empty(0, 3, 4, 4)

    y, m, rstd, _ = cpu.forward(x, partition, 1e-5, None, None, None, RELU, keep=True)
    dx, dweight, dbias, _ = cpu.backward(x, x, partition, m.mean, rstd, None, None, None, RELU, m.count)

    assert y.shape == dx.shape == x.shape
    assert dweight.tolist() == dbias.tolist() == m.mean[0].tolist() == [0, 0, 0]
    assert torch.isfinite(rstd).all()


def test_threads_do_not_share_what_one_call_passes_on() -> None:
    """Backward passes of several Python threads at once give what each gives alone."""
    partition = Partition.of_batch((8, 48, 20, 20), 1)
    cases = [(torch.randn(8, 48, 20, 20), torch.randn(8, 48, 20, 20)) for _ in range(4)]

    def backward(case: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
        x, dy = case
        for _ in range(20):
            _, m, rstd, saved = cpu.forward(x, partition, 1e-5, None, None, None, RELU, keep=True)
            grads = cpu.backward(dy, x, partition, m.mean, rstd, None, None, saved, RELU, m.count)
        return [t for t in grads if t is not None]

    alone = [backward(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(backward, cases))

    for one, other in zip(alone, together, strict=True):
        for expected, found in zip(one, other, strict=True):
            torch.testing.assert_close(found, expected)


def test_short_and_long_calls_may_take_different_instruction_sets_and_agree() -> None:
    """A sample normalised alone and in a long batch differs by rounding alone, whichever copies are in use."""
    x = torch.randn(512, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    layer = evenly.InstanceNorm2d(16, activation="relu")

    torch.testing.assert_close(layer(x[:1]), layer(x)[:1], rtol=1e-5, atol=1e-5)


PAIRS = {
    "batch": (Partition.of_batch((8, 6, 9, 5), 1), (8, 6, 9, 5), True),
    "batch, channels last": (Partition.of_batch((8, 9, 5, 6), 3), (8, 9, 5, 6), True),
    "dense": (Partition.of_batch((60, 100), 1), (60, 100), True),
    "ghosts": (Partition.of_batch((8, 6, 9, 5), 1, 4), (8, 6, 9, 5), True),
    "group": (Partition.of_group((8, 6, 9, 5), 1, 2), (8, 6, 9, 5), True),
    "rms": (Partition.of_layer((60, 100), 1), (60, 100), False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", PAIRS)
def test_the_pair_for_like_calls_does_what_the_two_calls_do(name: str, dtype: torch.dtype) -> None:
    """The same bits of output, statistics, gradients and running statistics."""
    partition, shape, centered = PAIRS[name]
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    x, dy = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight, bias = (torch.randn(partition.channels, dtype=statistics) for _ in range(2))
    channelwise = partition.group == partition.channels

    def running() -> Running | None:
        numbers = (torch.zeros(partition.channels, dtype=statistics), torch.ones(partition.channels, dtype=statistics))
        return Running(*numbers, average("ema", 0.1), torch.tensor(0), torch.tensor(0)) if channelwise else None

    one, other = running(), running()
    pair = cpu.pair(x, partition, RELU, 1e-5, centered=centered)
    y, mean, rstd = pair.forward(x, weight, bias, one)
    dx, dweight, dbias = pair.backward(dy, x, weight, bias, mean, rstd, measured=True, dx=True)
    expected, moments, rstd_, _ = cpu.forward(
        x, partition, 1e-5, weight, bias, None, RELU, centered=centered, keep=True, running=other
    )
    gradients = cpu.backward(
        dy, x, partition, moments.mean, rstd_, weight, bias, None, RELU, partition.count, centered=centered
    )

    found = [y, mean, rstd, dx, dweight, dbias, *(one[:2] if one else ())]
    wanted = [expected, moments.mean, rstd_, *gradients[:3], *(other[:2] if other else ())]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert pair.backward(dy, x, weight, bias, mean, rstd, measured=True, dx=False)[0] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_pair_takes_given_variances(dtype: torch.dtype) -> None:
    """As normalizing by one over their root does, to its rounding; what it wrote there serves backward."""
    partition, shape, _ = PAIRS["batch"]
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    x, dy = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight, bias, mean = (torch.randn(6, dtype=statistics) for _ in range(3))
    var, rstd = torch.rand(6, dtype=statistics), torch.empty(6, dtype=statistics)
    pair = cpu.pair(x, partition, RELU, 1e-5)

    y = pair.given(x, weight, bias, mean, var, rstd)
    found = pair.backward(dy, x, weight, bias, mean, rstd, measured=False, dx=True)
    exact = torch.rsqrt(var.double() + 1e-5).to(statistics)
    gradients = cpu.backward(
        dy, x, partition, mean[None], exact[None], weight, bias, None, RELU, partition.count, measured=False
    )

    torch.testing.assert_close(rstd, exact, rtol=4 * torch.finfo(statistics).eps, atol=0)
    assert torch.equal(pair.given(x, weight, bias, mean, var), y)
    assert torch.equal(y, cpu.normalize(x, partition, mean[None], rstd[None], weight, bias, None, RELU)[0])
    for a, b in zip(found, gradients[:3], strict=True):
        torch.testing.assert_close(a, b)


def test_the_pair_refuses_vectors_that_it_cannot_read() -> None:
    """Another type, another length, gaps: then the call goes the long way, where each is seen to."""
    partition, shape, _ = PAIRS["batch"]
    pair = cpu.pair(torch.randn(shape), partition, RELU, 1e-5)

    assert pair.takes(None, torch.ones(6))
    for vector in (torch.ones(6, dtype=torch.float64), torch.ones(5), torch.ones(12)[::2], torch.ones(6).bfloat16()):
        assert not pair.takes(torch.ones(6), vector)
