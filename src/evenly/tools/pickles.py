"""Pickles read without running anything.

A pickle is a small program for a machine with a stack: it makes numbers, texts and containers, names
callables and calls them. This is such a machine that calls nothing: a name is a `Global`, and a call
of it is what `evenly.tools.rebuild` makes of its arguments (a tensor, a dictionary), or a `Stub` that
remembers them. No module is imported, no class is made, no `__setstate__` run.

The operations themselves stand in `evenly.tools.opcodes`. The cost is bounded: each step counts, and
so does each item that a call is given, since a program may hand one long list to many calls.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, BinaryIO

MOST_STEPS = 1_000_000  # a second's worth; a thousand parameters with Adam's moments take 130,000
BYTES_A_STEP = 1024  # of a large file, which may have more steps
LONGEST_NUMBER = 256  # bytes


class Stub:
    """Stands for an object of an unknown class: what it was made from, its state and its items.

    Args:
        origin: ``module.name`` of the class or function.
        args: what it was called with.
    """

    __slots__ = ("args", "items", "origin", "state")

    def __init__(self, origin: str = "", args: tuple[Any, ...] = ()) -> None:
        self.origin, self.args = origin, args
        self.state: Any = None
        self.items: dict[Any, Any] | None = None


class Global:
    """The name of a class or function, which is all that is known of it."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class DamagedError(ValueError):
    """The program is no pickle, asks for too much, or tries what no checkpoint needs."""


Call = Callable[[Global, tuple[Any, ...]], Any]
MARK = object()  # on the stack, below the items that belong together


class Machine:
    """Runs the pickles of one file.

    Args:
        file: where the next pickle starts.
        size: of the file, in bytes; no text in it can be longer.
        call: what a call of a name gives.
        persistent: what the file keeps outside of the pickle, by its identity.
    """

    def __init__(self, file: BinaryIO, size: int, call: Call, persistent: Callable[[Any], Any]) -> None:
        self.file, self._size, self._call, self._persistent = file, size, call, persistent
        self._steps = self._most = MOST_STEPS + size // BYTES_A_STEP
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._globals: dict[tuple[str, str], Global] = {}

    def begin(self) -> None:
        """A new pickle: nothing on the stack, nothing remembered."""
        self.stack, self._memo = [], {}

    def charge(self, steps: int) -> None:
        """Count steps.

        Raises:
            DamagedError: there were too many.
        """
        self._steps -= steps
        if self._steps < 0:
            raise DamagedError(f"its pickle takes more than {self._most:,} steps.")

    def read(self, count: int) -> bytes:
        """So many bytes, or an error: a length is believed only where the file can hold it."""
        data = self.file.read(count) if 0 <= count <= self._size else b""
        if len(data) != count:
            raise DamagedError("it ends in the middle of a pickle.")
        return data

    def line(self, coding: str = "utf-8") -> str:
        """A text up to the end of the line."""
        text = self.file.readline(self._size)
        if text[-1:] != b"\n":
            raise DamagedError("a name or number of its pickle has no end.")
        return text[:-1].decode(coding)

    def text(self, form: str) -> str:
        """A text behind its length."""
        return self.read(self.number(form)).decode("utf-8", "surrogatepass")

    def number(self, form: str) -> Any:
        """A number of fixed length, in `struct`'s language."""
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def integer(self, length: int) -> int:
        """A whole number of so many bytes."""
        if not 0 <= length <= LONGEST_NUMBER:
            raise DamagedError(f"it has a number of {length:,} bytes.")
        return int.from_bytes(self.read(length), "little", signed=True)

    def pop(self) -> Any:
        """The top of the stack, which cannot be a mark."""
        top = self.stack.pop()
        if top is MARK:
            raise DamagedError("its pickle is damaged.")
        return top

    def marked(self) -> list[Any]:
        """What lies above the last mark."""
        stack, at = self.stack, len(self.stack) - 1
        while stack[at] is not MARK:
            if at == 0:
                raise DamagedError("its pickle is damaged.")
            at -= 1
        found = stack[at + 1 :]
        del stack[at:]
        return found

    def put(self, at: int) -> None:
        """Remember the top of the stack."""
        if self.stack[-1] is MARK:
            raise DamagedError("its pickle is damaged.")
        self._memo[at] = self.stack[-1]

    def memoize(self) -> None:
        """Remember the top of the stack under the next number."""
        self.put(len(self._memo))

    def get(self, at: int) -> None:
        """Push what was remembered."""
        self.stack.append(self._memo[at])

    def name(self, module: Any, name: Any) -> Global:
        """A name; one object for each."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedError("its pickle is damaged.")
        self.charge(2)  # dearer than a number
        if (module, name) not in self._globals:
            self._globals[module, name] = Global(module, name)
        return self._globals[module, name]

    def call(self, function: Any, args: Any) -> None:
        """Push what a call gives."""
        args = args if isinstance(args, tuple) else ()
        self.charge(sum(len(a) for a in args if isinstance(a, (list, tuple, dict, set, str, bytes))))
        self.stack.append(self._call(function, args) if isinstance(function, Global) else Stub("", args))

    def build(self) -> None:
        """Give the object below its state: a stub keeps it, a container of ours has no use for it."""
        state = self.pop()
        if isinstance(self.stack[-1], Global):
            raise DamagedError("it tries to change a function.")
        if isinstance(self.stack[-1], Stub):
            self.stack[-1].state = state

    def append(self, items: list[Any]) -> None:
        """Put items at the end of a list, or of a stub."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Stub):
            self.setitems([x for i, item in enumerate(items, len(target.items or ())) for x in (i, item)])
        else:
            raise DamagedError("its pickle is damaged.")

    def setitems(self, pairs: list[Any]) -> None:
        """Put keys and values into a dictionary, or into a stub."""
        target = self.stack[-1]
        if isinstance(target, Stub):
            if target.items is None:
                target.items = {}
            target = target.items
        if not isinstance(target, dict) or len(pairs) % 2:
            raise DamagedError("its pickle is damaged.")
        target.update((key(k), v) for k, v in zip(pairs[::2], pairs[1::2], strict=True))

    def additems(self, items: list[Any]) -> None:
        """Put items into a set; a stub has no use for them."""
        if isinstance(self.stack[-1], set):
            self.stack[-1].update(map(key, items))

    def persist(self, identity: Any) -> None:
        """Push what the file keeps elsewhere."""
        self.stack.append(self._persistent(identity))


def key(value: Any) -> Any:
    """A dictionary's key whose hash costs nothing; anything else is unlike any other key.

    A tuple of tuples can take 2^60 steps to hash, and chosen large numbers all land in one place.
    """
    plain = isinstance(value, (str, bytes, float, bool, type(None))) or (isinstance(value, int) and abs(value) < 2**60)
    return value if plain else object()
