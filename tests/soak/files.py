"""Files damaged at random, and hostile ones: each is read or refused in one line, at a small price.

``python -m tests.soak.files --seconds 60 --seed 7`` runs for a minute and prints its counts. A
traceback of another kind, more than two seconds of processor time or a gigabyte of memory is a
failure, printed as the line that repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from tests.soak import hostile

from evenly.tools.checkpoint import MEMORY

SECONDS = 2.0  # of the processor, for one file
MEBIBYTES = 1024
_PATIENCE = 120.0  # seconds of the clock until a child that uses no processor is given up


@dataclass
class Counts:
    """How many files were tried, refused and read, and a line for each failure."""

    tried: int
    refused: int
    read: int
    failures: list[str]


class Reader:
    """A process that reads files within limits, and is started anew when one of them kills it.

    Args:
        broken: whether the reader in it does what a file's text says: to see that the limits hold.
    """

    def __init__(self, broken: bool = False) -> None:
        self._context, self._read = multiprocessing.get_context("spawn"), _misbehave if broken else _read
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs, self._read), daemon=True)
        self._process.start()
        theirs.close()

    def try_file(self, path: Path) -> str:
        """``"read"``, ``"refused: …"`` or ``"failed: …"``."""
        answer = ""
        with contextlib.suppress(EOFError, OSError):
            self._pipe.send(str(path))
            if self._pipe.poll(_PATIENCE):
                answer = self._pipe.recv()
        if answer:
            return answer
        self._process.kill()
        self._process.join()
        code = self._process.exitcode
        self._start()
        return f"failed: took more than {SECONDS} s" if code == -signal.SIGPROF else f"failed: ended with {code}"

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


def _read(path: str) -> str:
    """What `evenly xray` prints; also its JSON is made."""
    from evenly.tools.xray import xray

    diagnosis = xray(path)
    json.dumps(diagnosis.to_dict())
    return diagnosis.table()


def _misbehave(path: str) -> str:
    match Path(path).read_text():
        case "hang":
            while True:
                pass
        case "memory":
            return str(len(b"x" * (MEBIBYTES + 100 << 20)))
        case "raise":
            raise KeyError(path)
        case _:
            raise ValueError("two\nlines")


def _serve(pipe: Connection, read: Callable[[str], str]) -> None:
    from evenly.tools.xray import xray

    torch.set_num_threads(1)
    xray(torch.nn.BatchNorm1d(2).state_dict())
    # The memory of the process as it stands, what is allowed, and as much again to notice that it is exceeded.
    ours = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (ours + (2 * MEBIBYTES << 20),) * 2)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(EOFError):
        while True:
            path = pipe.recv()
            pipe.send(_tried(path, read))


def _tried(path: str, read: Callable[[str], str]) -> str:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _peak()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        outcome = "read" if read(path) else "failed: no table"
    except ValueError as error:
        text = str(error)
        outcome = f"refused: {text}" if text.isprintable() and len(text) < 1000 else f"failed: not one line: {text!r}"
        outcome = f"failed: {text}" if MEMORY in text else outcome
    except BaseException as error:
        outcome = f"failed: {type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    used = _peak() - before
    return outcome if used < MEBIBYTES else f"failed: took {used} MiB"


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def seeds() -> dict[str, bytes]:
    """A small good file of each format."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    state = model.state_dict()
    arrays = {key: value.numpy() for key, value in state.items()}
    adam = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    adam.step()
    found = {"safetensors": save(state), "pickled arrays": pickle.dumps(arrays), "pickled": pickle.dumps(state, 2)}
    for name, content, options in (
        ("state_dict", state, {}),
        ("training", {"model": state, "optimizer": adam.state_dict(), "epoch": 3}, {}),
        ("whole", model, {}),
        ("arrays", arrays, {}),
        ("legacy", state, {"_use_new_zipfile_serialization": False}),
        ("legacy whole", model, {"_use_new_zipfile_serialization": False}),
    ):
        torch.save(content, stream := io.BytesIO(), **options)
        found[name] = stream.getvalue()
    for name, saved in (("npz", np.savez), ("packed npz", np.savez_compressed)):
        saved(stream := io.BytesIO(), **arrays)
        found[name] = stream.getvalue()
    return found


def damaged(chance: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """The file with one to four things wrong; inside of a zip archive as often as outside."""
    if content.startswith(b"PK") and chance.random() < 0.6:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            entries = {name: file.read(name) for name in file.namelist()}
        at = chance.choice([n for n in entries if n.endswith(("data.pkl", ".npy"))])
        entries[at] = _damaged(chance, entries[at], others)
        with zipfile.ZipFile(stream := io.BytesIO(), "w") as file:
            for name, data in entries.items():
                file.writestr(name, data)
        return stream.getvalue()
    return _damaged(chance, content, others)


def _damaged(chance: random.Random, content: bytes, others: list[bytes]) -> bytes:
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at, kind = chance.randrange(len(data) + 1), chance.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at : at + chance.randint(1, 8)] = chance.randbytes(chance.randint(0, 8))
        elif kind == 2:
            data = data[: max(at, 1)]
        elif kind == 3:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            data[at:at] = other[start : start + chance.randint(1, 200)]
        elif kind == 4:  # a number that is too large, or below zero
            data[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0"])
        elif kind == 5:  # another operation of a pickle
            data[at : at + 1] = bytes(
                [chance.choice(b"(.012FIJKLMNPQRSTUXabcdeghijloprstu)]}\x80\x81\x85\x86\x87\x88\x8a\x8b\x93\x94")]
            )
        else:
            data[at : at + chance.randint(1, 40)] = data[: chance.randint(1, 40)]
    return bytes(data)  # fmt: skip


def cases(seed: int) -> Iterator[tuple[str, bytes]]:
    """Damaged files without end; each with its number."""
    torch.manual_seed(0)
    good = seeds()
    names, others = list(good), list(good.values())
    number = 0
    while True:
        chance = random.Random(f"{seed}:{number}")
        name = names[number % len(names)]
        yield f"{number}: {name}", damaged(chance, good[name], others)
        number += 1


def run(
    seconds: float, seed: int, only: str | None = None, most: int = sys.maxsize, hostile_too: bool = True
) -> Counts:
    """Try files for so long.

    Args:
        seconds: how long to go on; the hostile files are tried in any case.
        seed: of the damage.
        only: the one case to try.
        most: how many damaged files to try at most.
        hostile_too: whether to begin with the hostile files.
    """
    counts = Counts(0, 0, 0, [])
    reader = Reader()
    until = time.monotonic() + seconds
    first = list(hostile.files()) if hostile_too else []
    with tempfile.TemporaryDirectory() as folder:
        for count, (name, content) in enumerate(itertools.chain(first, itertools.islice(cases(seed), most))):
            if count >= len(first) and time.monotonic() > until and (only is None or counts.tried):
                break
            if only is not None and name != only:
                continue
            (path := Path(folder, f"case{count % 7}.pt")).write_bytes(content)
            outcome = reader.try_file(path)
            counts.tried += 1
            counts.read += outcome == "read"
            counts.refused += outcome.startswith("refused")
            if only is not None:
                print(outcome)
            if outcome.startswith("failed"):
                counts.failures.append(f"python -m tests.soak.files --seed {seed} --only {name!r}   # {outcome}")
                print(counts.failures[-1], flush=True)
    reader.close()
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only")
    found = run(**vars(parser.parse_args()))
    print(f"{found.tried} files tried, {found.refused} refused, {found.read} read, {len(found.failures)} failures")
    sys.exit(bool(found.failures))
