"""Processes that work for another one: they leave Ctrl-C to it, and do not outlive it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_EVERY = 0.5  # seconds


def begin(main_process: int) -> None:
    """Called first in a worker; ``main_process`` started it."""
    leave_interrupts()
    end_with(main_process)


def leave_interrupts() -> None:
    """Ctrl-C reaches every process of the terminal; the main one answers it, for all."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_with(main_process: int) -> None:
    """End this process when the one that started it is gone, however it went: kill -9 tells nobody.

    Linux does it at once, even while a kernel runs; elsewhere a thread looks twice a second.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=(main_process,), daemon=True).start()


def _watch(main_process: int) -> None:
    while os.getppid() == main_process:  # an orphan has another parent
        time.sleep(_EVERY)
    os._exit(1)
