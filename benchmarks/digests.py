"""Whether the kernels of this tree give what those of an older commit gave, bit for bit or as exactly.

    python benchmarks/digests.py 076cb09                    # digests of outputs and gradients, row by row
    python benchmarks/digests.py 076cb09 --errors           # largest and RMS error against float64, old and new
    python benchmarks/digests.py 076cb09 --only image --isas x86-64-v3 --threads 1

The older commit is unpacked and compiled in a temporary folder (``--old FOLDER`` keeps it there for the
next run). Child processes, one for each tree, instruction set and number of threads, run every row: the
cases of ``tests/cases.py`` and some that are large enough for teams of threads and for streaming, each in
four types, with every activation, a residual, a mask and given statistics. They use public functions
alone. Rows that differ are listed; the exit status is 1 where there are any.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ACTIVATIONS = (None, "relu", "relu6", "leaky_relu", "elu", "silu", "gelu")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commit", help="the older commit")
    parser.add_argument("--old", type=Path, help="folder to build the older commit in, kept for the next run")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--isas", help="instruction sets: a,b; all by default")
    parser.add_argument("--threads", default="1,2", help="numbers of threads: a,b")
    parser.add_argument("--errors", action="store_true", help="compare errors against float64 in place of digests")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        old = options.old or Path(temporary) / "old"
        build(options.commit, old)
        differing = 0
        for isa in options.isas.split(",") if options.isas else instruction_sets():
            for threads in options.threads.split(","):
                ask = (options.only, "errors" if options.errors else "digests", isa, threads)
                differing += compare(f"{isa}, {threads} threads", child(old, *ask), child(ROOT, *ask), options.errors)
    sys.exit(1 if differing else 0)


def build(commit: str, folder: Path) -> None:
    """Unpack and compile a commit, unless that was done before."""
    done = folder / "done"
    if done.exists() and done.read_text() == commit:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    nanobind = subprocess.run(
        [sys.executable, "-m", "nanobind", "--cmake_dir"], check=True, capture_output=True, text=True
    ).stdout.strip()
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "EVENLY_EXTENSION": "ON",
        "Python_EXECUTABLE": sys.executable,
        "CMAKE_PREFIX_PATH": nanobind,
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": folder / "src" / "evenly",
    }
    definitions = [f"-D{name}={value}" for name, value in settings.items()]
    configure = ["cmake", "-S", folder, "-B", folder / "build", "-G", "Ninja", *definitions]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder / "build"], check=True, stdout=subprocess.DEVNULL)
    done.write_text(commit)


def instruction_sets() -> list[str]:
    """Those that this machine runs."""
    code = "from evenly import backends; from evenly.backends import cpu; print(','.join(cpu.instruction_sets()))"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip().split(",")


def child(tree: Path, only: str, mode: str, isa: str, threads: str) -> dict[str, Any]:
    """What the rows give in a tree: a digest or errors for each output of each."""
    env = {
        **os.environ,
        "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{ROOT / 'tests'}",
        "EVENLY_ISA": isa,
        "OMP_WAIT_POLICY": "passive",
    }
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])['rows'](*sys.argv[1:])"
    command = [sys.executable, "-c", code, __file__, str(tree), only, mode, threads]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compare(title: str, old: dict[str, Any], new: dict[str, Any], errors: bool) -> int:
    """Print the rows that differ (of errors: that grew), and return how many there are."""
    differing = 0
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if not errors:
            differing += 1
            print(f"differs   {title}: {name}")
        elif before is None or after is None:
            differing += 1
            print(f"missing   {title}: {name}: {before} → {after}")
        else:
            grew = after[0] > before[0] * 1.0001 or after[1] > before[1] * 1.0001
            differing += grew
            numbers = f"largest {before[0]:.2e} → {after[0]:.2e}, RMS {before[1]:.2e} → {after[1]:.2e}"
            print(f"{'grew     ' if grew else 'no larger'} {title}: {name}: {numbers}")
    print(f"{title}: {len(new)} rows, {differing} {'with a larger error' if errors else 'differ'}", flush=True)
    return differing


# From here on: what a child runs.


def rows(tree: str, only: str, mode: str, threads: str) -> None:
    """Run every row and print what it gave as JSON."""
    import torch

    import evenly

    assert Path(evenly.__file__).is_relative_to(Path(tree)), evenly.__file__
    torch.set_num_threads(int(threads))
    found: dict[str, Any] = {}
    for name, call, tensors in every_row(only):
        outputs = run(call, tensors)
        if mode == "digests":
            for output, tensor in outputs.items():
                raw = tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
                found[f"{name}, {output}"] = hashlib.sha256(raw).hexdigest()
        else:
            with evenly.use_backend("reference"):
                exact = run(call, {key: t if t.dtype is torch.bool else t.double() for key, t in tensors.items()})
            for output, tensor in outputs.items():
                error = tensor.detach().double() - exact[output].detach()
                found[f"{name}, {output}"] = [error.abs().max().item(), error.square().mean().sqrt().item()]
    print(json.dumps(found))


def every_row(only: str) -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """Name, call and tensors of each row."""
    import torch
    from cases import CASES, DTYPES, Case, inputs

    from evenly.core.partition import Partition

    large = [
        Case("batch-team", (2, 1, 300, 301), Partition.of_batch((2, 1, 300, 301), 1)),
        Case("batch-streamed", (8, 40, 64, 64), Partition.of_batch((8, 40, 64, 64), 1)),
        Case("batch-streamed-short", (32, 96, 21, 21), Partition.of_batch((32, 96, 21, 21), 1)),
        Case("batch-streamed-last", (8, 64, 64, 40), Partition.of_batch((8, 64, 64, 40), 3)),
        Case("batch-7x7", (48, 160, 7, 7), Partition.of_batch((48, 160, 7, 7), 1)),
        Case("layer-streamed", (1500, 1024), Partition.of_layer((1500, 1024), 1), masked=False),
    ]
    for case in (*CASES, *large):
        for dtype in DTYPES:
            drawn = inputs(case, dtype)
            statistics = torch.float64 if dtype == torch.float64 else torch.float32
            tensors = {"x": drawn.x.to(dtype), "dy": drawn.dy.to(dtype)}
            tensors |= {"weight": drawn.weight.to(statistics), "bias": drawn.bias.to(statistics)}
            for label, call, extra in variants(case, drawn, dtype):
                name = f"{case.name}, {str(dtype).removeprefix('torch.')}, {label}"
                if only in name:
                    yield name, call, {**tensors, **extra}


def variants(case: Any, drawn: Any, dtype: Any) -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """Activations with and without a residual, masks, given statistics."""
    residual = {"residual": drawn.residual.to(dtype)}
    for activation in ACTIVATIONS:
        yield str(activation), family(case, activation=activation), {}
        yield f"{activation}, residual", family(case, activation=activation), residual
    if case.name.startswith("batch"):
        yield "given", family(case, activation="relu", training=False), {}
    if case.masked:
        mask = {"mask": positions(case, drawn.weights).float()}
        keep = {"mask": positions(case, drawn.keep)}
        yield "weights", family(case, activation="relu"), mask
        yield "zeroing", family(case, activation="relu", zero_masked=True), {**keep, **residual}


def axis(case: Any) -> int:
    """The channel axis of a case's shape."""
    p = case.partition
    fits = [a for a, size in enumerate(case.shape) if size == p.channels and prod(case.shape[a + 1 :]) == p.stride]
    return fits[0]


def positions(case: Any, flat: Any) -> Any:
    """A mask of the shape that the functions take: the tensor's without the channel axis."""
    a = axis(case)
    return flat.reshape(*case.shape[:a], *case.shape[a + 1 :])


def prod(sizes: Any) -> int:
    """Their product."""
    result = 1
    for size in sizes:
        result *= size
    return result


def family(case: Any, **settings: Any) -> Callable[..., Any]:
    """The public function of a case, over ``x``, ``weight``, ``bias`` and what else is given by name."""
    import torch

    from evenly import functional

    p, kind = case.partition, case.name.split("-")[0]

    def call(x: Any, weight: Any, bias: Any, **extra: Any) -> Any:
        options = {**settings, **extra}
        if kind == "batch":
            mean, var = torch.full_like(weight, 0.25), torch.full_like(weight, 1.5)
            options = {"training": True, "ghosts": p.outer, "channel": axis(case), **options}
            return functional.batch_norm(x, mean, var, weight, bias, **options), mean, var
        if kind == "instance":
            return functional.instance_norm(x, None, None, weight, bias, channel=axis(case), **options)
        if kind == "group":
            return functional.group_norm(x, p.group, weight, bias, channel=axis(case), **options)
        if kind == "channels":
            return functional.layer_norm(x, [p.channels], weight, bias, channel=axis(case), **options)
        ndim = next(n for n in range(1, x.dim()) if prod(x.shape[-n:]) == p.inner)
        weight, bias = weight.reshape(x.shape[-ndim:]), bias.reshape(x.shape[-ndim:])
        if kind == "rms":
            return functional.rms_norm(x, x.shape[-ndim:], weight, 1e-5, **options)
        return functional.layer_norm(x, x.shape[-ndim:], weight, bias, **options)

    return call


def run(call: Callable[..., Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """The output, what was written to running statistics, and the gradients of all that has one."""
    import torch

    given = {key: t.clone() for key, t in tensors.items() if key != "dy"}
    leaves = [key for key, t in given.items() if key != "mask"]
    for key in leaves:
        given[key].requires_grad_()
    result = call(**given)
    y, *running = result if isinstance(result, tuple) else (result,)
    gradients = torch.autograd.grad(y, [given[key] for key in leaves], tensors["dy"], allow_unused=True)
    outputs = {"y": y, **dict(zip(("running_mean", "running_var"), running, strict=False))}
    named = zip(leaves, gradients, strict=True)
    return {**outputs, **{f"d{key}": gradient for key, gradient in named if gradient is not None}}


if __name__ == "__main__":
    main()
