"""Processes that share statistics, for tests: started once, given many functions to run, always ended.

A function to run is a module's own, takes ``rank`` first, and gets and returns what can be pickled.
The processes are forked from a server that has imported torch and evenly, so that starting them
costs little.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch.distributed", "evenly.nn.batchnorm"])
PATIENCE = 120.0  # seconds until a process that does not answer fails the test


class Processes:
    """A gloo process group of ``size`` processes.

    Args:
        size: how many.
        timeout: seconds after which a collective gives up.
    """

    def __init__(self, size: int, timeout: float = 60.0) -> None:
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name, "store"))
        self._members = []
        for rank in range(size):
            ours, theirs = _context.Pipe()
            process = _context.Process(target=_serve, args=(theirs, rank, size, store, timeout), daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, ours))

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What ``function(rank, *arguments)`` returns in each process; an error there is an error here."""
        answers = self.attempt(function, *arguments)
        for rank, answer in enumerate(answers):
            if isinstance(answer, BaseException):
                raise AssertionError(f"process {rank} raised:\n{''.join(answer.__notes__)}") from answer
        return answers

    def attempt(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """As `run`, with a process's error in the place of its answer; None where it died."""
        for _, pipe in self._members:
            try:
                pipe.send_bytes(pickle.dumps((function, arguments)))
            except OSError:
                continue
        deadline = time.monotonic() + PATIENCE
        return [self._answer(rank, deadline) for rank in range(len(self._members))]

    def _answer(self, rank: int, deadline: float) -> Any:
        _, pipe = self._members[rank]
        if not pipe.poll(max(0.0, deadline - time.monotonic())):
            self.end()
            raise AssertionError(f"process {rank} hangs: no answer after {PATIENCE:g} seconds")
        try:
            return pickle.loads(pipe.recv_bytes())
        except EOFError:
            return None

    def end(self) -> None:
        """Stop all of them, whatever they do."""
        for process, pipe in self._members:
            pipe.close()
            process.join(0 if process.exitcode is not None else 2)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()


def die(rank: int, victim: int) -> None:
    """End process ``victim`` as the system would: at once."""
    if rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)


def _serve(pipe: Any, rank: int, size: int, store: str, timeout: float) -> None:
    import torch
    import torch.distributed as dist

    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # Compiling, torch makes an instance of every autograd function, which torch itself warns of.
    warnings.filterwarnings("ignore", message=".*should not be instantiated", category=DeprecationWarning)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, size), rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    while True:
        try:
            function, arguments = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            break
        torch.manual_seed(0)
        try:
            answer = function(rank, *arguments)
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = error
        pipe.send_bytes(pickle.dumps(answer))
    os._exit(0)  # a broken process group's destructor may wait for its peers
