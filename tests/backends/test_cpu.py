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
from evenly.backends.kernel import Kernel
from evenly.backends.memory import memory_order, statistics_dtype
from evenly.backends.records import Given, Tensors, Wanted
from evenly.backends.running import Running, update
from evenly.core.activation import IDENTITY, Activation
from evenly.core.norm import Norm
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


def kernel(partition: Partition, x: torch.Tensor, activation: Activation = IDENTITY) -> Kernel:
    """The compiled kernel for inputs like ``x``."""
    made: Kernel | None = cpu.prepare(Norm(partition, 1e-5, activation), x, memory_order(x))
    assert made is not None
    return made


def defined(partition: Partition, x: torch.Tensor, activation: Activation = IDENTITY) -> reference.Kernel:
    """The definition for inputs like ``x``."""
    return reference.Kernel(Norm(partition, 1e-5, activation), memory_order(x))


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
    exact = defined(partition, x).moments(x.double())
    truth, _ = defined(partition, x).forward(x.double(), Tensors(), None, keep=False)
    # Two passes with exact sums, everything else in float32.
    mean = exact.mean.float()
    deviation = x.reshape(partition.shape) - mean[:, None, :, None]
    var = deviation.double().square().mean((1, 3)).float()
    two_pass = deviation * torch.rsqrt(var + 1e-5)[:, None, :, None]

    y, _ = kernel(partition, x).forward(x, Tensors(), None, keep=False)

    allowed = 4 * (two_pass.reshape(shape).double() - truth).abs().max()
    assert (y.double() - truth).abs().max() <= allowed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_outliers_first_do_not_spoil_the_shift(layout: str) -> None:
    """A set that begins far from its mean (a padded border, say) keeps its variance to float32 rounding."""
    shape, partition = LAYOUTS[layout]
    x = torch.randn(shape) + 100
    x[:1] = 0
    exact = defined(partition, x).moments(x.double())

    found = kernel(partition, x).moments(x)

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
            norm = kernel(partition, x, RELU)
            y, kept = norm.forward(x, Tensors(weight), None, keep=True)
            grads = norm.backward(dy, x, Tensors(weight), kept, Wanted())
            runs.append([y, kept.mean, kept.rstd, *grads[:3]])
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


def test_kernels_are_imported_with_the_layers() -> None:
    """Not at the first call: a process that forks while another thread imports would hang in the child."""
    code = "import sys, evenly; evenly.BatchNorm1d; print('evenly.backends.cpu' in sys.modules)"

    assert python(code) == "True"


def test_relu_saves_the_input_and_four_numbers_a_channel() -> None:
    """Nothing else of the size of the input is kept for backward."""
    shape, partition = LAYOUTS["planes"]
    x = torch.randn(shape)

    _, kept = kernel(partition, x, RELU).forward(x, Tensors(torch.ones(6), torch.ones(6)), None, keep=True)

    assert kept.slope is None and kept.m2 is None
    assert kept.mean.numel() + kept.rstd.numel() == 2 * 6


def test_a_residual_costs_one_bit_an_element() -> None:
    """With a residual and ReLU the signs are kept, eight to a byte, as `slope_of_bits` reads them."""
    shape, partition = LAYOUTS["short planes"]
    x, residual = torch.randn(shape), torch.randn(shape)

    y, kept = kernel(partition, x, RELU).forward(x, Tensors(residual=residual), None, keep=True)

    assert kept.slope is not None
    assert kept.slope.nbytes == (x.numel() + 7) // 8
    assert torch.equal(defined(partition, x, RELU).slope_in_shape(kept.slope, x), (y > 0).float())


def test_bits_that_belong_to_no_element_are_zero() -> None:
    """Equal calls give equal bytes: the memory of the bits is not zeroed beforehand, its end is."""
    x, residual = torch.randn(3, 5, 7), torch.ones(3, 5, 7)
    partition = Partition.of_batch(x.shape)
    for _ in range(8):
        dirty = torch.full((14,), 255, dtype=torch.uint8)
        del dirty
        saved = kernel(partition, x, RELU).forward(x, Tensors(residual=residual), None, keep=True)[1].slope

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
        update(truth, defined(partition, x).moments(x))
        kernel(partition, x).forward(x, Tensors(), found, keep=False)

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

    norm = kernel(partition, x, RELU)
    y, kept = norm.forward(x, Tensors(), None, keep=True)
    dx, dweight, dbias, _ = norm.backward(x, x, Tensors(), kept, Wanted())

    assert dx is not None and dweight is not None and dbias is not None
    assert y.shape == dx.shape == x.shape
    assert dweight.tolist() == dbias.tolist() == kept.mean[0].tolist() == [0, 0, 0]
    assert torch.isfinite(kept.rstd).all()


def test_threads_do_not_share_what_one_call_passes_on() -> None:
    """Backward passes of several Python threads at once give what each gives alone."""
    partition = Partition.of_batch((8, 48, 20, 20), 1)
    cases = [(torch.randn(8, 48, 20, 20), torch.randn(8, 48, 20, 20)) for _ in range(4)]
    norm = kernel(partition, cases[0][0], RELU)

    def backward(case: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
        x, dy = case
        for _ in range(20):
            _, kept = norm.forward(x, Tensors(), None, keep=True)
            grads = norm.backward(dy, x, Tensors(), kept, Wanted())
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", ["planes", "short planes", "columns"])
def test_given_variances_are_turned_into_rstd_in_the_kernel(layout: str, dtype: torch.dtype) -> None:
    """Mean and variance of the channels give what normalizing by one over their root gives, forward and backward."""
    shape, partition = LAYOUTS[layout]
    statistics = statistics_dtype(dtype)
    x, dy = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight, bias, mean = (torch.randn(6, dtype=statistics) for _ in range(3))
    var = torch.rand(6, dtype=statistics)
    norm, tensors = kernel(partition, x, RELU), Tensors(weight, bias)

    y, kept = norm.forward(x, tensors, Given(mean, var), keep=True)

    exact = torch.rsqrt(var.double() + 1e-5).to(statistics)[None]
    torch.testing.assert_close(kept.rstd, exact, rtol=4 * torch.finfo(statistics).eps, atol=0)
    assert torch.equal(y, norm.normalize(x, tensors, mean[None], kept.rstd, keep=False)[0])
    assert torch.equal(norm.forward(x, tensors, Given(mean, var), keep=False)[0], y)
    found = norm.backward(dy, x, tensors, kept, Wanted())
    expected = norm.composed_backward(dy, x, tensors, kept, Wanted())
    for a, b in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(a, b)


VECTORS = {
    "another type": lambda t: t.double(),
    "gaps": lambda t: t.repeat_interleave(2)[::2],
    "half precision": lambda t: t.bfloat16(),
    "lazily negated": lambda t: torch._neg_view(-t),
    "an imaginary part": lambda t: torch.complex(torch.zeros(6), -t).conj().imag,
    "an expanded number": lambda t: torch.full((1,), 2.0).expand(6),
    "zeros without memory": lambda t: torch._efficientzerotensor(6),
}


@pytest.mark.parametrize("kind", VECTORS)
def test_every_vector_is_read_as_torch_reads_it(kind: str) -> None:
    """Weight, bias, mean and variance of another type or layout, lazily negated or without memory."""
    shape, partition = LAYOUTS["planes"]
    x, dy = torch.randn(shape), torch.randn(shape)
    vector = VECTORS[kind](torch.tensor([1.0, 2.0, -1.5, 0.5, 4.0, -2.0]))
    plain = torch.zeros(6) + vector.float()
    norm = kernel(partition, x, RELU)

    for spoiled in ({"weight": vector}, {"bias": vector}):
        y, kept = norm.forward(x, Tensors(**spoiled), None, keep=True)
        grads = norm.backward(dy, x, Tensors(**spoiled), kept, Wanted())
        good = Tensors(**dict.fromkeys(spoiled, plain))
        y_, kept_ = norm.forward(x, good, None, keep=True)
        assert torch.equal(y, y_)
        expected = norm.backward(dy, x, good, kept_, Wanted())
        assert all(torch.equal(a, b) for a, b in zip(grads[:3], expected[:3], strict=True))
    found = norm.forward(x, Tensors(), Given(vector, vector.abs()), keep=False)[0]
    assert torch.equal(found, norm.forward(x, Tensors(), Given(plain, plain.abs()), keep=False)[0])


TENSORS = {
    "another layout": lambda t: t.contiguous(memory_format=torch.channels_last),
    "expanded": lambda t: t[:1].expand(t.shape),
    "lazily negated": lambda t: torch._neg_view(-t),
    "another type": lambda t: t.double(),
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape),
}


@pytest.mark.parametrize("which", ["x", "dy", "residual", "saved x"])
@pytest.mark.parametrize("kind", TENSORS)
def test_every_tensor_is_brought_into_the_order_of_the_walk(kind: str, which: str) -> None:
    """Input, its gradient, residual and what backward gets back, in any layout: as equal values in the plan's own."""
    shape, partition = LAYOUTS["planes"]
    x, dy, residual = torch.randn(shape), torch.randn(shape), torch.randn(shape)
    norm = kernel(partition, x, RELU)

    def run(spoil):  # type: ignore[no-untyped-def]
        a = {name: spoil(t) if name == which else t for name, t in (("x", x), ("dy", dy), ("residual", residual))}
        y, kept = norm.forward(a["x"], Tensors(residual=a["residual"]), None, keep=True)
        saved = spoil(a["x"]) if which == "saved x" else a["x"]
        return [y, *norm.backward(a["dy"], saved, Tensors(), kept, Wanted(dresidual=True))]

    found = run(TENSORS[kind])
    expected = run(lambda t: TENSORS[kind](t).to(t.dtype).clone(memory_format=torch.contiguous_format) + 0)

    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_a_tensor_of_another_size_is_refused() -> None:
    """Nothing is read beyond an end: a vector or tensor of another length is an error that names both sizes."""
    shape, partition = LAYOUTS["planes"]
    x = torch.randn(shape)
    norm = kernel(partition, x)

    with pytest.raises(ValueError, match="5 elements where 6"):
        norm.forward(x, Tensors(torch.ones(5)), None, keep=False)
    with pytest.raises(ValueError, match="running_var has 5 elements"):
        norm.forward(x, Tensors(), Given(torch.ones(6), torch.ones(5)), keep=False)
    with pytest.raises(ValueError, match=r"\(8, 6, 40, 39\)"):
        norm.forward(x[..., :39], Tensors(), None, keep=False)
