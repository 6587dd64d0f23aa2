"""Check evenly on a GPU: every layer against float64 on the CPU, and shared statistics over nccl.

    python benchmarks/gpu_check.py                                          # one GPU: world size one
    torchrun --standalone --nproc-per-node 2 benchmarks/gpu_check.py        # one process per GPU

It prints one line for each check and ends with status 1 if any failed. No check looks at the time.
On a world of one the messages are sent all the same: to this process itself.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType

import torch
import torch.distributed as dist
from torch import Tensor, nn

import evenly
from evenly.nn.sync import Processes

SHAPE = (6, 8, 5, 7)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm": lambda: evenly.BatchNorm(8),
    "BatchNorm2d, relu": lambda: evenly.BatchNorm2d(8, activation="relu"),
    "BatchNorm, silu": lambda: evenly.BatchNorm(8, activation="silu"),
    "BatchNorm, 3 ghosts": lambda: evenly.BatchNorm(8, ghosts=3),
    "GroupNorm, gelu": lambda: evenly.GroupNorm(4, 8, activation="gelu"),
    "InstanceNorm2d": lambda: evenly.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "LayerNorm": lambda: evenly.LayerNorm((5, 7)),
    "RMSNorm": lambda: evenly.RMSNorm(7),
}
# Relative to the largest value: float32 through sums of a few hundred terms; bfloat16 has 8 bits.
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 3e-2}


def main() -> None:
    """Run all checks; exit status 1 if one failed."""
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU that torch can use here; nothing was checked.")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    failed = 0
    for name, error, limit in (*layers(device), *shared(device)):
        failed += not error <= limit  # NaN fails
        print(
            f"{'ok    ' if error <= limit else 'FAILED'} {name:44} error {error:.1e}, at most {limit:.0e}", flush=True
        )
    print(f"{torch.cuda.get_device_name(device)}: {failed} failed")
    sys.exit(bool(failed))


def layers(device: torch.device) -> Iterator[tuple[str, float, float]]:
    """Every layer, type and memory format: its largest error against float64 on the CPU."""
    for name, make in LAYERS.items():
        for dtype, limit in TOLERANCES.items():
            for form in (torch.contiguous_format, torch.channels_last):
                x, dy = (t.to(dtype).double() for t in data())
                with evenly.use_backend("reference"):
                    exact = outcome(make().double(), x, dy)
                layer = make().to(device)
                layer = layer.double() if dtype == torch.float64 else layer
                found = outcome(layer, x.to(device, dtype).contiguous(memory_format=form), dy.to(device, dtype))
                about = f"{name}, {str(dtype).removeprefix('torch.')}, {str(form).removeprefix('torch.')}"
                yield about, worst(found, exact), limit


def shared(device: torch.device) -> Iterator[tuple[str, float, float]]:
    """Shared statistics over nccl: eager, twice differentiated, compiled, against one process on all data."""
    meet(device)
    rank, size = dist.get_rank(), dist.get_world_size()
    x, dy = data()
    exact = outcome(evenly.BatchNorm(8).double(), x, dy)
    mine = slice(rank, None, size)
    for name in ("eager", "compiled"):
        norm = sending(evenly.SyncBatchNorm(8).double().to(device))
        layer = norm if name == "eager" else torch.compile(norm, fullgraph=True)
        found = outcome(layer, x[mine].to(device), dy[mine].to(device))
        for key in ("weight", "bias"):
            dist.all_reduce(found[key])
        parts = {key: exact[key][mine] if key in ("y", "dx") else exact[key] for key in found}
        yield f"SyncBatchNorm over nccl, {size} processes, {name}", worst(found, parts), TOLERANCES[torch.float64]
    yield f"SyncBatchNorm over nccl, {size} processes, twice", second(device, mine), TOLERANCES[torch.float64]
    dist.destroy_process_group()


def second(device: torch.device, mine: slice) -> float:
    """The error of a second derivative."""
    x, dy = data()
    values = []
    for norm, part in ((evenly.BatchNorm(8), slice(None)), (sending(evenly.BatchNorm(8).to(device)), mine)):
        where = norm.double().weight.device
        leaf = x[part].to(where).requires_grad_()
        (dx,) = torch.autograd.grad(norm(leaf), leaf, dy[part].to(where), create_graph=True)
        values.append(torch.autograd.grad(dx.square().sum(), leaf)[0].cpu())
    return worst({"ddx": values[1]}, {"ddx": values[0][mine]})


def sending(norm: evenly.BatchNorm) -> evenly.BatchNorm:
    """The layer, sharing its statistics also in a world of one, where it would send nothing."""
    group = Processes(dist.group.WORLD.group_name, dist.get_world_size())
    norm._processes = MethodType(lambda self: group, norm)
    return norm


def meet(device: torch.device) -> None:
    """Join torchrun's processes, or be a world of one."""
    if "RANK" in os.environ:
        dist.init_process_group("nccl", device_id=device)
    else:
        store = dist.FileStore(str(Path(tempfile.mkdtemp(), "store")), 1)
        dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=device)


def data() -> tuple[Tensor, Tensor]:
    """Input and the gradient of the output, in float64, the same everywhere."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    return 3 + 2 * x, dy


def outcome(layer: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Output, gradients and running statistics of one training step."""
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    y.backward(dy)
    assert isinstance(layer, nn.Module)
    module = getattr(layer, "_orig_mod", layer)
    found = {"y": y.detach(), "dx": leaf.grad}
    found |= {name: p.grad for name, p in module.named_parameters()}
    return found | {name: b.clone() for name, b in module.named_buffers() if name.startswith("running")}


def worst(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The largest error of all, each relative to the largest value of its kind."""
    errors = [
        float((found[key].cpu().double() - value.double()).abs().max() / value.abs().max().clamp(min=1e-3))
        for key, value in exact.items()
        if value.numel()
    ]
    return max(errors)


if __name__ == "__main__":
    main()
