"""Statistics shared by processes: k of them with parts of the data equal one with all of it."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.processes import Processes, die
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import evenly

C = 3
# The samples of each process.
CUTS = {
    "even": (4, 4), "uneven": (7, 1), "first empty": (0, 8), "last empty": (8, 0),
    "three": (4, 1, 3), "one of three empty": (5, 0, 3), "two of three empty": (0, 8, 0),
}  # fmt: skip
MASKS = ("none", "bool", "weights", "own all masked")
# Float64 sums of a few hundred terms, in another order.
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    """Two processes, for the whole module."""
    with Processes(2) as group:
        yield group


@pytest.fixture(scope="module")
def three() -> Iterator[Processes]:
    """Three processes, for the whole module."""
    with Processes(3) as group:
        yield group


def data(mask: str, cut: tuple[int, ...]) -> dict[str, Tensor]:
    """All data: input, residual, mask, the gradient of the output, the direction of a second derivative."""
    g = torch.Generator().manual_seed(1)
    shape = (sum(cut), C, 2, 3)
    x, residual, dy, v = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(4))
    tensors = {"x": 5 + 2 * x, "residual": residual, "dy": dy, "v": v}
    places = (shape[0], *shape[2:])
    if mask == "bool":
        tensors["mask"] = torch.rand(places, generator=g) < 0.6
    elif mask == "weights":
        tensors["mask"] = torch.randint(0, 4, places, generator=g).double()
    elif mask == "own all masked":
        tensors["mask"] = torch.ones(places, dtype=torch.bool)
        tensors["mask"][: cut[0]] = False
    return tensors


def layer_of(sync: bool, **settings: Any) -> evenly.BatchNorm:
    """A float64 layer with weights of its own."""
    layer = evenly.BatchNorm(C, sync=sync, dtype=torch.float64, **settings)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
        layer.bias.copy_(torch.tensor([0.1, 0.2, -0.3]))
    return layer


def everything(tensors: dict[str, Tensor], sync: bool, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Output, running statistics, all first and second derivatives of a call."""
    layer = layer_of(sync, **settings)
    x, residual = tensors["x"].clone().requires_grad_(), tensors["residual"].clone().requires_grad_()
    y = layer(x, residual=residual, mask=tensors.get("mask"))
    dy = tensors["dy"].clone().requires_grad_()
    inputs = [x, residual, layer.weight, layer.bias]
    once = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    again = torch.autograd.grad(y, inputs, dy, create_graph=True)
    twice = torch.autograd.grad((again[0] * tensors["v"]).sum(), [dy, x, layer.weight])
    found = dict(zip(("dx", "dresidual", "dweight", "dbias"), once, strict=True))
    found |= dict(zip(("dx'", "dresidual'", "dweight'", "dbias'"), again, strict=True))
    found |= dict(zip(("ddy", "ddx", "ddweight"), twice, strict=True))
    found |= dict(layer.named_buffers(), y=y)
    return {name: value.detach() for name, value in found.items()}


def part(rank: int, mask: str, cut: tuple[int, ...], settings: dict[str, Any]) -> dict[str, Tensor]:
    """One process's part of `everything`."""
    start = sum(cut[:rank])
    own = {name: t[start : start + cut[rank]] for name, t in data(mask, cut).items()}
    return everything(own, True, settings)


def of_all(parts: list[dict[str, Tensor]], name: str) -> Tensor:
    """The whole's value of ``name`` from the parts': weights' gradients add, statistics agree, the rest joins."""
    values = [p[name] for p in parts]
    if "weight" in name or "bias" in name:
        return torch.stack(values).sum(0)
    if name.startswith("running") or "batches" in name:
        assert all(torch.equal(values[0], v) for v in values), f"{name} differs between processes"
        return values[0]
    return torch.cat(values)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_parts_equal_the_whole(two: Processes, three: Processes, cut: tuple[int, ...], mask: str) -> None:
    """Output, first and second derivatives and running statistics equal one process's on all data, to 1e-12."""
    settings = {"activation": "gelu", "zero_masked": mask == "bool"}
    parts = (two if len(cut) == 2 else three).run(part, mask, cut, settings)

    whole = everything(data(mask, cut), False, settings)
    for name, expected in whole.items():
        torch.testing.assert_close(of_all(parts, name), expected, **EXACT, msg=lambda m, n=name: f"{n}: {m}")
    assert whole["num_batches_tracked"] == (0 if cut == (8, 0) and mask == "own all masked" else 1)


STATISTICS = {
    "ema": {}, "cumulative": {"momentum": None}, "debiased": {"average": "debiased"}, "biased": {"unbiased": False},
    "renorm": {"renorm": evenly.Renorm(1.5, 0.5)}, "accumulate": {"accumulate": 2},
    "inplace": {"inplace": True, "activation": "leaky_relu"},
}  # fmt: skip
Steps = tuple[dict[str, Tensor], list[Tensor], list[Tensor]]


def three_steps(rank: int, settings: dict[str, Any], sync: bool) -> Steps:
    """The buffers after three steps on parts of changing size; each step's output and input's gradient."""
    layer = layer_of(sync, **settings)
    outputs, gradients = [], []
    for step, cut in enumerate(((2, 3), (0, 4), (5, 1))):
        x = torch.randn(sum(cut), C, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64) + step
        x = (x.split(cut)[rank] if sync else x).clone().requires_grad_()
        y = layer(x)
        gradients.append(torch.autograd.grad((y**3).sum(), x)[0])
        outputs.append(y.detach())
    return {name: b.clone() for name, b in layer.named_buffers()}, outputs, gradients


@pytest.mark.parametrize("settings", STATISTICS.values(), ids=STATISTICS)
def test_three_uneven_steps(two: Processes, settings: dict[str, Any]) -> None:
    """Under every average and policy both processes keep the same bits, and step by step the whole's values."""
    (first, *tensors0), (second, *tensors1) = two.run(three_steps, settings, True)

    whole, *tensors = three_steps(0, settings, False)
    for name, expected in whole.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], expected, **EXACT)
    for parts0, parts1, wholes in zip(tensors0, tensors1, tensors, strict=True):
        for part0, part1, expected in zip(parts0, parts1, wholes, strict=True):
            torch.testing.assert_close(torch.cat([part0, part1]), expected, rtol=1e-11, atol=1e-11)


def two_layouts(rank: int) -> Tensor:
    """Process 0 has channels first in memory, process 1 channels last."""
    x = data("none", (4, 4))["x"].split(4)[rank]
    return layer_of(True)(x.contiguous(memory_format=torch.channels_last if rank else torch.contiguous_format))


def test_memory_formats_may_differ(two: Processes) -> None:
    """What is sent does not depend on how the input lies in memory."""
    with torch.no_grad():
        whole = layer_of(False)(data("none", (4, 4))["x"])

    torch.testing.assert_close(torch.cat([y.detach() for y in two.run(two_layouts)]), whole, **EXACT)


def far_from_zero(rank: int) -> Tensor:
    """Float32 at mean 1e4 and standard deviation 1, a part in each process."""
    x = 1e4 + torch.randn(512, C, generator=torch.Generator().manual_seed(0))
    return evenly.SyncBatchNorm(C, affine=False)(x.split(256)[rank])


def test_large_means_keep_their_variance(two: Processes) -> None:
    """At mean 1e4 in float32 the output is as near to float64's as one process's float32 is."""
    x = 1e4 + torch.randn(512, C, generator=torch.Generator().manual_seed(0))
    exact = evenly.BatchNorm(C, affine=False, dtype=torch.float64)(x.double())
    alone = (evenly.BatchNorm(C, affine=False)(x) - exact).abs().max()

    assert (torch.cat(two.run(far_from_zero)) - exact).abs().max() <= 2 * alone + 1e-6


def one_value_each(rank: int, values: int) -> Tensor:
    """The first ``values`` processes have one value per channel, the others none."""
    return evenly.SyncBatchNorm(C, affine=False)(torch.full((int(rank < values), C), float(rank)))


def test_one_value_over_all_processes_is_refused_everywhere(two: Processes) -> None:
    """The rule of more than one value per channel counts all processes: one is an error on both, two pass."""
    errors = two.attempt(one_value_each, 1)
    first, second = two.run(one_value_each, 2)

    assert [type(e) for e in errors] == [ValueError, ValueError]
    assert "got 1 over all processes; use a larger batch" in str(errors[1])
    torch.testing.assert_close(torch.cat([first, second]), torch.tensor([[-1.0] * C, [1.0] * C]), rtol=0, atol=1e-4)


def only_first(rank: int) -> Tensor | None:
    """Only process 0 calls: in evaluation, frozen statistics or not."""
    layer = layer_of(True).eval()
    bare = evenly.SyncBatchNorm(C, track_running_stats=False).eval()
    return layer(torch.ones(2, C).double()).detach() + bare(torch.randn(4, C))[:2] * 0 if rank == 0 else None


def test_evaluation_sends_nothing(two: Processes) -> None:
    """One process evaluates while the other does not call at all."""
    y, nothing = two.run(only_first)

    torch.testing.assert_close(y, layer_of(False).eval()(torch.ones(2, C).double()).detach())
    assert nothing is None


def test_alone_it_is_batch_norm() -> None:
    """Without torch.distributed the layer is BatchNorm, errors included."""
    x = torch.randn(4, C)

    assert torch.equal(evenly.SyncBatchNorm(C)(x), evenly.BatchNorm(C)(x))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        evenly.SyncBatchNorm(C)(x[:1])


def in_groups(rank: int) -> tuple[list[Tensor], str, list[Tensor]]:
    """Two layers in turn, one shared by processes 0 and 2, one by all; then copies of the first."""
    pair, alone = dist.new_group([0, 2]), dist.new_group([1])
    x = torch.full((2, 1), float(rank)).double() + torch.tensor([[0.0], [1.0]])
    shared = evenly.BatchNorm(1, sync=True, process_group=alone if rank == 1 else pair, dtype=torch.float64)
    world = evenly.SyncBatchNorm(1, dtype=torch.float64)
    shared(x), world(x), shared(x)
    refusal = ""
    if rank == 1:
        try:
            evenly.SyncBatchNorm(1, process_group=pair)(x)
        except ValueError as error:
            refusal = str(error)
    copies = [copy.deepcopy(shared), pickle.loads(pickle.dumps(shared))]
    for layer in copies:
        layer(x)
    return [shared.running_mean, world.running_mean], refusal, [layer.running_mean for layer in copies]


def test_several_process_groups(three: Processes) -> None:
    """Each layer shares within its own group; copies and pickles keep the group; outsiders are refused."""
    found = three.run(in_groups)

    decay = torch.tensor([1 - 0.9**2, 1 - 0.9**3]).double()
    for rank, (means, _, copies) in enumerate(found):
        mine = 1.5  # of 0, 1, 1, 2 and their like: processes 0 and 2 average to process 1
        assert means[0].item() == pytest.approx(mine * float(decay[0]))
        assert means[1].item() == pytest.approx(mine * 0.1)
        assert [c.item() for c in copies] == pytest.approx([mine * float(decay[1])] * 2)
        assert ("process 1 is not in the layer's process group" in found[rank][1]) == (rank == 1)


def test_an_unknown_group_is_named() -> None:
    """A layer unpickled where its group does not exist works alone, and keeps the name."""
    layer = pickle.loads(pickle.dumps(evenly.SyncBatchNorm(C, process_group="workers of one machine")))

    assert layer.process_group == "workers of one machine"
    assert layer(torch.randn(4, C)).shape == (4, C)


def in_an_unknown_group(rank: int) -> str:
    """The error of a group that does not exist here."""
    with pytest.raises(ValueError, match="process group") as caught:
        evenly.SyncBatchNorm(C, process_group="nobody")(torch.randn(4, C))
    return str(caught.value)


def test_an_unknown_group_is_refused_among_processes(two: Processes) -> None:
    """With torch.distributed running, the error names the group and the repair."""
    assert all(
        "no process group named 'nobody' here" in e and "set the layer's" in e for e in two.run(in_an_unknown_group)
    )


def network(sync: bool) -> nn.Module:
    """Two convolutions and their norms, in float64."""
    torch.manual_seed(0)
    norms = [evenly.BatchNorm(c, sync=sync, activation="relu") for c in (4, 5)]
    layers = nn.Sequential(nn.Conv2d(2, 4, 3), norms[0], nn.Conv2d(4, 5, 3), norms[1], nn.Flatten(), nn.Linear(20, 3))
    return layers.double()


def train(model: nn.Module, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Four steps of gradient descent; the state after them."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    return {name: t.clone() for name, t in model.state_dict().items()}


def digits() -> tuple[Tensor, Tensor]:
    """Twelve inputs and targets."""
    return torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(3)).double(), torch.arange(12) % 3


def train_in_parallel(rank: int) -> dict[str, Tensor]:
    """Half of the data under DistributedDataParallel."""
    x, target = digits()
    return train(DistributedDataParallel(network(True)), x[rank::2], target[rank::2])


def test_data_parallel_training_equals_one_process(two: Processes) -> None:
    """Four steps under DistributedDataParallel reach the weights of one process with the whole batch."""
    first, second = two.run(train_in_parallel)

    for name, expected in train(network(False), *digits()).items():
        assert torch.equal(first[f"module.{name}"], second[f"module.{name}"])
        torch.testing.assert_close(first[f"module.{name}"], expected, rtol=1e-9, atol=1e-11)


def under_checkpoint(rank: int) -> tuple[Tensor, Tensor]:
    """One step with the activations recomputed: gradient and counter."""
    layer = layer_of(True)
    x = data("none", (4, 4))["x"].split(4)[rank].requires_grad_()
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    return x.grad, layer.num_batches_tracked


def test_activation_checkpointing(two: Processes) -> None:
    """The recompute sends its messages again on every process and counts no batch."""
    x = data("none", (4, 4))["x"].requires_grad_()
    layer_of(False)(x).square().sum().backward()

    for rank, (dx, batches) in enumerate(two.run(under_checkpoint)):
        torch.testing.assert_close(dx, x.grad[4 * rank : 4 * rank + 4], **EXACT)
        assert batches == 1


def functional_gradient(rank: int) -> Tensor:
    """The gradient by torch.func."""
    layer = layer_of(True, track_running_stats=False)
    x = data("none", (4, 4))["x"].split(4)[rank]
    return torch.func.grad(lambda x: layer(x).square().sum())(x)


def test_torch_func(two: Processes) -> None:
    """torch.func.grad goes through the messages, too."""
    x = data("none", (4, 4))["x"].requires_grad_()
    layer_of(False)(x).square().sum().backward()

    torch.testing.assert_close(torch.cat([dx.detach() for dx in two.run(functional_gradient)]), x.grad, **EXACT)


def test_ghosts_and_sync_contradict() -> None:
    """Statistics cannot be taken over parts of a batch and over all processes at once."""
    with pytest.raises(ValueError, match="choose one"):
        evenly.BatchNorm(C, sync=True, ghosts=2)


def steps(rank: int, numbers: tuple[int, int], empty: bool) -> Tensor:
    """As many training steps as this process has data for; then, on request, empty batches."""
    layer = evenly.SyncBatchNorm(C)
    for step in range(max(numbers) if empty else numbers[rank]):
        x = torch.full((2, C), float(step)) * torch.tensor([[0.0], [2.0]])
        y = layer((x if step < numbers[rank] else x[:0]).requires_grad_())
        y.sum().backward()
    return layer.running_mean


def test_unequal_steps_end_in_an_error_that_says_so() -> None:
    """A process that runs one step more raises after the group's timeout and names the cause and the repair."""
    with Processes(2, timeout=2) as group:
        longer, shorter = group.attempt(steps, (3, 2), False)

    assert isinstance(shorter, Tensor)
    assert isinstance(longer, RuntimeError)
    assert "process 0 of 2" in str(longer)
    assert "empty batches" in str(longer)


def test_empty_batches_make_unequal_steps_equal(two: Processes) -> None:
    """With empty batches to the end, the process with more data goes on alone, and both agree."""
    first, second = two.run(steps, (4, 2), True)

    expected = 0.0
    for step in range(4):
        expected = 0.9 * expected + 0.1 * step
    assert torch.equal(first, second)
    assert first.tolist() == pytest.approx([expected] * C)


def test_a_killed_process_ends_the_others_with_an_error() -> None:
    """When one process is killed, the next step of the others raises instead of hanging."""
    with Processes(3, timeout=5) as group:
        group.run(steps, (1, 1, 1), False)
        group.attempt(die, 1)
        answers = group.attempt(steps, (1, 1, 1), False)

    assert answers[1] is None
    for survivor in (answers[0], answers[2]):
        assert isinstance(survivor, RuntimeError)
        assert "A process has died" in str(survivor)


def thousand_steps(rank: int) -> tuple[list[int], list[int], list[int]]:
    """Live tensors, open files and resident kilobytes after 200 and after 1000 steps."""
    layer = evenly.SyncBatchNorm(1024)
    x = torch.randn(2, 1024, requires_grad=True)
    tensors, files, memory = [], [], []
    for step in range(1, 1001):
        layer(x).sum().backward()
        if step in (200, 1000):
            gc.collect()
            tensors.append(sum(type(o) is Tensor for o in gc.get_objects()))
            files.append(len(list(Path("/proc/self/fd").iterdir())))
            resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line)
            memory.append(int(resident.split()[1]))
    return tensors, files, memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts by Linux's /proc")
def test_nothing_leaks(two: Processes) -> None:
    """Eight hundred further steps leave no tensor, no file, and not half of their 12 KiB messages behind."""
    for tensors, files, memory in two.run(thousand_steps):
        assert tensors[1] == tensors[0]
        assert files[1] == files[0]
        assert memory[1] - memory[0] < 4096


def needs_differ(rank: int) -> tuple[Tensor, Tensor]:
    """Process 0 has a fixed input and a trained weight, process 1 the reverse; first, 1 runs under no_grad."""
    layer = layer_of(True)
    x = data("none", (4, 4))["x"].split(4)[rank]
    with torch.set_grad_enabled(rank == 0):
        y = layer(x).detach()
    layer.requires_grad_(rank == 0)
    x.requires_grad_(rank == 1)
    leaf = layer.weight if rank == 0 else x
    once, again = (
        torch.autograd.grad(layer(x).square().sum(), leaf, create_graph=create_graph)[0].detach()
        for create_graph in (False, True)
    )
    torch.testing.assert_close(once, again, **EXACT)
    return y, once


def test_needs_may_differ_between_processes(two: Processes) -> None:
    """Messages match whether or not a process needs the input's gradient, or any."""
    (y0, dweight), (y1, dx) = two.run(needs_differ)

    layer, x = layer_of(False), data("none", (4, 4))["x"].requires_grad_()
    y = layer(x)
    torch.testing.assert_close(torch.cat([y0, y1]), y.detach(), **EXACT)
    torch.testing.assert_close(dx, torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0][4:], **EXACT)
    first = torch.autograd.grad(y[:4].square().sum(), layer.weight)[0]
    torch.testing.assert_close(dweight, first, **EXACT)
