"""Train a network on the shipped digits, its batch statistics shared by all processes.

On one machine, with two processes (on its GPUs where it has enough, else on the CPU)::

    torchrun --standalone --nproc-per-node 2 examples/train_distributed.py

On several, the same line on each, with one of them named::

    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 examples/train_distributed.py

A run that was interrupted goes on from its checkpoint when it is started again, with any number
of processes. Whatever that number, the network learned is the same up to rounding: the processes
share each batch's statistics, and the gradient is the mean over the whole batch.
"""

from __future__ import annotations

import argparse
import os
import time
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import evenly

TEST = 360  # samples held out


def main() -> None:
    """Read the command line, join the other processes, train, report."""
    options = arguments()
    device = join()
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(options.seed)
    model = network().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
    epoch = restore(options.checkpoint, model, optimizer, device)
    parallel = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    train_x, train_y, test_x, test_y = (t.to(device) for t in digits())
    if rank == 0:
        print(
            f"{size} processes on {device.type}, {len(train_x)} digits to learn from, from epoch {epoch + 1}",
            flush=True,
        )

    while epoch < options.epochs:
        started = time.perf_counter()
        order = torch.randperm(len(train_x), generator=torch.Generator().manual_seed(options.seed + epoch))
        loss = learn(parallel, optimizer, train_x, train_y, order, options.batch)
        epoch += 1
        accuracy = evaluate(model, test_x, test_y)
        if rank == 0:
            save(options.checkpoint, model, optimizer, epoch)
            seconds = time.perf_counter() - started
            print(
                f"epoch {epoch}/{options.epochs}  loss {loss:.4f}  accuracy {accuracy:.3f}  {seconds:.1f} s", flush=True
            )
    dist.barrier()
    dist.destroy_process_group()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=60, help="samples per step, of all processes together")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("train_distributed.pt"), help="written after each epoch"
    )
    return parser.parse_args()


def join() -> torch.device:
    """Meet the other processes; a GPU for each where there are enough, else the CPU. Alone without torchrun."""
    here, mine = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", mine) if torch.cuda.device_count() >= here else torch.device("cpu")
    meeting = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", **meeting)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))
        dist.init_process_group("gloo", **meeting)
    return device


def network() -> nn.Sequential:
    """Two convolutions and a classifier, each convolution followed by batch norm and ReLU in one layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        evenly.SyncBatchNorm(16, activation="relu"),
        nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False),
        evenly.SyncBatchNorm(32, activation="relu"),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images, of shape ``(N, 1, 8, 8)`` from 0 to 1, and their classes."""
    with as_file(files("evenly.lab") / "data" / "digits.npz") as path, np.load(path) as data:
        order = np.random.default_rng(0).permutation(len(data["y"]))
        x = torch.from_numpy(data["x"][order]).float()[:, None] / 16
        y = torch.from_numpy(data["y"][order]).long()
    return x[TEST:], y[TEST:], x[:TEST], y[:TEST]


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, order: Tensor, batch: int) -> float:
    """One epoch; returns the mean loss. Every process takes every step, with what it has of the batch."""
    rank, size = dist.get_rank(), dist.get_world_size()
    total = x.new_zeros(())
    model.train()
    for whole in order.split(batch):
        mine = whole[rank::size].to(x.device)  # may be empty: the layers take part all the same
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[mine]), y[mine], reduction="sum")
        # DistributedDataParallel takes the mean of the processes' gradients: make it the batch's.
        (loss * size / len(whole)).backward()
        optimizer.step()
        total += loss.detach()
    dist.all_reduce(total)
    return float(total) / len(order)


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Accuracy on the test images, each process judging its share by the running statistics."""
    rank, size = dist.get_rank(), dist.get_world_size()
    model.eval()
    right = (model(x[rank::size]).argmax(1) == y[rank::size]).sum()
    dist.all_reduce(right)
    return float(right) / len(y)


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Write the checkpoint beside its place, then move it there: an interruption leaves the old or the new."""
    unfinished = path.with_name(path.name + ".unfinished")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, unfinished)
    os.replace(unfinished, path)


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> int:
    """The number of epochs behind the checkpoint, loaded if it is there; 0 if not.

    Process 0 says whether it is, so that all start from the same place.
    """
    checkpoint = (
        [torch.load(path, map_location="cpu", weights_only=True)] if dist.get_rank() == 0 and path.exists() else [None]
    )
    dist.broadcast_object_list(checkpoint, device=device)
    if checkpoint[0] is None:
        return 0
    model.load_state_dict(checkpoint[0]["model"])
    optimizer.load_state_dict(checkpoint[0]["optimizer"])
    return int(checkpoint[0]["epoch"])


if __name__ == "__main__":
    main()
