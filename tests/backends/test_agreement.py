"""Every backend agrees with the reference in float64, on every case of `tests.cases`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from tests.cases import ACTIVATIONS, CASES, DTYPES, TOLERANCE, Case, Inputs, inputs
from torch import Tensor

from evenly import backends
from evenly.backends import native, reference
from evenly.backends.kernel import Kernel
from evenly.backends.memory import memory_order, statistics_dtype
from evenly.backends.records import Kept, Tensors, Wanted
from evenly.core.activation import IDENTITY, Activation
from evenly.core.norm import Norm
from evenly.core.partition import Partition

cpu = backends.import_cpu()
RELU, GELU, LEAKY = Activation.of("relu"), Activation.of("gelu"), Activation.of("leaky_relu", (0.2,))
NAMES = [
    *(f"cpu {isa}" for isa in ([] if cpu is None else cpu.instruction_sets())),
    *(backend.__name__.rpartition(".")[2] for backend in backends.available() if backend is not cpu),
]
# What torch has no operator for; the reference does it.
NOT_NATIVE = {
    "batch-ghosts", "batch-ghosts-last", "instance-last", "group-image-last", "group-image-middle", "channels",
}  # fmt: skip


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Each backend of the registry, the kernels once for each instruction set that this machine has."""
    name = request.param
    if not name.startswith("cpu"):
        yield {"native": native, "reference": reference}[name]
        return
    assert cpu is not None
    with instruction_set(name.split()[1]):
        yield cpu


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """The kernels by one instruction set."""
    assert cpu is not None
    before = cpu.instruction_set()
    cpu.use_instruction_set(name)
    try:
        yield
    finally:
        cpu.use_instruction_set(before)


def kernel_of(backend: ModuleType, case: Case, norm: Norm, x: Tensor) -> Kernel:
    """The backend's kernel; the test is skipped only where torch is known to have no operator."""
    kernel: Kernel | None = backend.prepare(norm, x, memory_order(x))
    if backend is native:
        lacking = NOT_NATIVE if native._has_rms("cpu") else NOT_NATIVE | {"rms", "rms-long"}
        assert (kernel is None) == (case.name in lacking), case.name
    if kernel is None:
        pytest.skip("torch has no operator for this norm")
    assert kernel.name == backend.__name__.rpartition(".")[2]
    return kernel


def both_ways(
    backend: ModuleType,
    case: Case,
    given: Inputs,
    dtype: torch.dtype,
    activation: Activation = IDENTITY,
    *,
    residual: bool = False,
    mask: Tensor | None = None,
    zeroing: bool = False,
    fused: bool = True,
    measured: bool = True,
) -> dict[str, Tensor]:
    """All that forward and backward return, in float64."""
    statistics = statistics_dtype(dtype)
    x, dy = given.x.to(dtype), given.dy.to(dtype)
    weight, bias = given.weight.to(statistics), given.bias.to(statistics)
    tensors = Tensors(weight, bias, given.residual.to(dtype) if residual else None, mask)
    p = case.partition
    kernel = kernel_of(backend, case, Norm(p, 1e-5, activation, case.centered, zeroing), x)
    if measured:
        forward = kernel.forward if fused else kernel.composed_forward
        y, kept = forward(x, tensors, None, keep=True, **({"spread": True} if fused else {}))  # type: ignore[operator]
    else:
        mean = torch.full((p.outer, p.group), 0.25, dtype=statistics)
        y, slope = kernel.normalize(x, tensors, mean, mean + 0.5, keep=True)
        kept = Kept(mean, mean + 0.5, p.count, slope, False, mean)
    backward = kernel.backward if fused else kernel.composed_backward
    without = tensors._replace(residual=None)
    gradients = backward(dy, x, without, kept, Wanted(True, True, residual))
    found = {"y": y, "mean": kept.mean, "m2": kept.m2, "rstd": kept.rstd, **gradients._asdict()}
    if not residual:
        del found["dresidual"]
    if isinstance(kept.count, Tensor):
        found["count"] = kept.count
    return {name: t.double() for name, t in found.items()}


def assert_agree(
    found: dict[str, Tensor],
    truth: dict[str, Tensor],
    case: Case,
    dtype: torch.dtype,
    sums_dtype: torch.dtype = torch.float32,
) -> None:
    """Sums grow with what they run over, so they are compared relative to its root.

    Args:
        found: of a backend.
        truth: of the reference in float64.
        case: the case.
        dtype: of the input.
        sums_dtype: in which half precision adds up the gradients of weight and bias.
    """
    sums = {"m2": case.partition.count, "dweight": case.partition.numel / case.partition.channels}
    sums["dbias"] = sums["dweight"]
    for name, expected in truth.items():
        # Statistics and sums are float32 whatever the input's type.
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        if name in ("dweight", "dbias") and dtype not in (torch.float32, torch.float64):
            kind = sums_dtype
        tolerance = TOLERANCE[dtype if name in ("y", "dx", "dresidual") else kind]
        scale = max(sums.get(name, 1), 1.0) if name == "m2" else max(sums.get(name, 1), 1.0) ** 0.5
        scale = max(scale, expected.abs().max().item() if expected.numel() else 0.0)
        assert found[name].shape == expected.shape, name
        torch.testing.assert_close(
            found[name], expected, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_relu_agrees(case: Case, dtype: torch.dtype, backend: ModuleType) -> None:
    """Norm and ReLU, forward and all gradients, are the reference's in float64, for every type."""
    given = inputs(case, dtype)
    truth = both_ways(reference, case, given, torch.float64, RELU)

    found = both_ways(backend, case, given, dtype, RELU)

    # torch's layer and RMS norm add the weight's gradient up in half precision.
    sums = dtype if backend is native else torch.float32
    assert_agree(found, _where_slope_is_sure(truth, found), case, dtype, sums)


def _where_slope_is_sure(truth: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients jump where z is 0; the seed keeps all z of the cases away from it."""
    assert torch.equal(truth["y"] > 0, found["y"] > 0)
    return truth


@pytest.mark.parametrize("case", CASES, ids=str)
def test_activations_and_residual_agree(case: Case, backend: ModuleType) -> None:
    """Every activation, with and without a residual, agrees in float64; also the residual's gradient."""
    given = inputs(case, torch.float64)
    for activation in ACTIVATIONS:
        for residual in (False, True):
            truth = both_ways(reference, case, given, torch.float64, activation, residual=residual)

            found = both_ways(backend, case, given, torch.float64, activation, residual=residual)

            assert_agree(found, truth, case, torch.float64)


@pytest.mark.parametrize("name", ["batch-image", "batch-image-last", "batch-image-short-planes", "layer"])
def test_float32_activations_agree(name: str, backend: ModuleType) -> None:
    """The kernels' own exponential and normal distribution are as good as float32 allows."""
    case = next(c for c in CASES if c.name == name)
    given = inputs(case, torch.float32)
    for activation in ACTIVATIONS:
        truth = both_ways(reference, case, given, torch.float64, activation, residual=True)

        found = both_ways(backend, case, given, torch.float32, activation, residual=True)

        assert_agree(found, truth, case, torch.float32)


@pytest.mark.parametrize("case", [c for c in CASES if c.masked], ids=str)
def test_masks_agree(case: Case, backend: ModuleType) -> None:
    """Masks by position (kept or weighed) and by element, zeroing or not, agree in float64."""
    given = inputs(case, torch.float64)
    for mask in (given.keep, given.weights, (given.residual > -0.5).reshape(-1)):
        for zeroing in (False, True):
            asked = {"residual": True, "mask": mask, "zeroing": zeroing}
            truth = both_ways(reference, case, given, torch.float64, GELU, **asked)

            found = both_ways(backend, case, given, torch.float64, GELU, **asked)

            assert_agree(found, truth, case, torch.float64)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_steps_agree_one_by_one(case: Case, backend: ModuleType) -> None:
    """The four steps called apart give what the fused pairs give."""
    given = inputs(case, torch.float64)
    truth = both_ways(reference, case, given, torch.float64, LEAKY, residual=True)

    found = both_ways(backend, case, given, torch.float64, LEAKY, residual=True, fused=False)

    assert_agree(found, truth, case, torch.float64)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_given_statistics_agree(case: Case, backend: ModuleType) -> None:
    """With given statistics (evaluation, frozen) nothing flows through them."""
    given = inputs(case, torch.float64)
    for residual in (False, True):
        truth = both_ways(reference, case, given, torch.float64, RELU, residual=residual, measured=False)

        found = both_ways(backend, case, given, torch.float64, RELU, residual=residual, measured=False)

        assert_agree(found, truth, case, torch.float64)


LARGE = {  # shape and channel axis; each output is larger than what stays in the cache
    "planes": ((7, 4, 200, 200), 1),
    "planes of half lines": ((22, 66, 28, 28), 1),
    "short planes": ((40, 141, 14, 14), 1),
    "planes of odd size": ((13, 130, 25, 27), 1),
    "tiny planes": ((32, 700, 7, 7), 1),
    "a slab larger than L2": ((400, 3, 30, 30), 1),
    "channels last": ((5, 60, 60, 70), 3),
}


@pytest.mark.skipif(cpu is None, reason="the kernels are not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_what_is_streamed_past_the_cache_agrees(name: str, dtype: torch.dtype) -> None:
    """Large outputs, whose lines are written whole, agree for planes of every alignment; with a residual, too."""
    assert cpu is not None
    shape, channel = LARGE[name]
    shape = (shape[0] * 4 // dtype.itemsize, *shape[1:])
    case = Case(name, shape, Partition.of_batch(shape, channel))
    assert case.partition.numel * dtype.itemsize > 4 << 20
    for added in (False, True):
        given = inputs(case, dtype)
        z = both_ways(reference, case, given, torch.float64, residual=added)["y"]
        given = replace(given, dy=given.dy * (z.abs() > 0.05))  # the slope jumps at 0
        truth = both_ways(reference, case, given, torch.float64, LEAKY, residual=added)
        for isa in cpu.instruction_sets():
            with instruction_set(isa):
                found = both_ways(cpu, case, given, dtype, LEAKY, residual=added)

            assert_agree(found, truth, case, dtype)
