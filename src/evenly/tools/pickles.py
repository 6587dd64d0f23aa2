"""Pickles read without running anything.

A pickle is a small program for a machine with a stack: it makes numbers, texts and containers, names
callables and calls them. This is such a machine that calls nothing: a name is a `Global`, and a call
of it is what `evenly.tools.rebuild` makes of its arguments (a tensor, a dictionary), or a `Stub` that
remembers them. No module is imported, no class is made, no `__setstate__` run.

Its cost is bounded: each step counts, and so does each item that a call is given, since a program
may hand one long list to many calls.
"""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

MOST_STEPS = 1_000_000  # a second's worth; a thousand parameters with Adam's moments take 130,000
BYTES_A_STEP = 1024  # of a large file, which may have more steps
_LONGEST_LINE = 4096  # bytes of a name or a number written as text
_LONGEST_NUMBER = 256  # bytes


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
_MARK = object()


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

    def load(self) -> Any:
        """The object that the next pickle makes."""
        self.stack, self._memo = [], {}
        read, operations = self.file.read, OPERATIONS
        collecting = gc.isenabled()
        gc.disable()  # it would look again and again at a million objects that all stay
        try:
            while code := read(1):
                if code == b".":
                    return self.pop()
                self.charge(1)
                operations[code[0]](self)
        except (IndexError, KeyError, TypeError, struct.error):
            raise DamagedError("its pickle is damaged.") from None
        finally:
            if collecting:
                gc.enable()
        raise DamagedError("it ends in the middle of a pickle.")

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

    def line(self) -> str:
        """A text up to the end of the line."""
        text = self.file.readline(_LONGEST_LINE)
        if text[-1:] != b"\n":
            raise DamagedError("a name or number of its pickle has no end.")
        return text[:-1].decode("utf-8")

    def text(self, form: str) -> str:
        """A text behind its length."""
        return self.read(self.number(form)).decode("utf-8", "surrogatepass")

    def number(self, form: str) -> Any:
        """A number of fixed length, in `struct`'s language."""
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def integer(self, length: int) -> int:
        """A whole number of so many bytes."""
        if not 0 <= length <= _LONGEST_NUMBER:
            raise DamagedError(f"it has a number of {length:,} bytes.")
        return int.from_bytes(self.read(length), "little", signed=True)

    def pop(self) -> Any:
        """The top of the stack, which cannot be a mark."""
        top = self.stack.pop()
        if top is _MARK:
            raise DamagedError("its pickle is damaged.")
        return top

    def marked(self) -> list[Any]:
        """What lies above the last mark."""
        stack, at = self.stack, len(self.stack) - 1
        while stack[at] is not _MARK:
            if at == 0:
                raise DamagedError("its pickle is damaged.")
            at -= 1
        found = stack[at + 1 :]
        del stack[at:]
        return found

    def put(self, at: int) -> None:
        """Remember the top of the stack."""
        if self.stack[-1] is _MARK:
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


def _text_number(machine: Machine) -> Any:
    text = machine.line()
    return {"00": False, "01": True}[text] if text in ("00", "01") else int(text.rstrip("L"))


def _extension(machine: Machine) -> None:
    raise DamagedError("its pickle uses what no checkpoint needs (extensions or buffers).")


def _unknown(machine: Machine) -> None:
    raise DamagedError("it is no pickle.")


def _inst(m: Machine) -> None:
    function = m.name(m.line(), m.line())
    m.call(function, tuple(m.marked()))


def _obj(m: Machine) -> None:
    function, *args = m.marked()
    m.call(function, tuple(args))


def _reduce(m: Machine) -> None:
    args = m.pop()
    m.call(m.pop(), args)


def _new_with_names(m: Machine) -> None:
    m.pop()
    _reduce(m)


def _tuple(count: int) -> Callable[[Machine], None]:
    def operation(m: Machine) -> None:
        items = [m.pop() for _ in range(count)]
        m.stack.append(tuple(reversed(items)))

    return operation


def _stack_global(m: Machine) -> None:
    name = m.pop()
    m.stack.append(m.name(m.pop(), name))


def _setitem(m: Machine) -> None:
    value = m.pop()
    m.setitems([m.pop(), value])


def _dict(m: Machine) -> None:
    pairs = m.marked()
    m.stack.append({})
    m.setitems(pairs)


def _set(m: Machine) -> None:
    m.stack.append(set(map(key, m.marked())))


def _drop(m: Machine) -> None:
    m.stack.pop()


def _push(value: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    return lambda m: m.stack.append(value(m))


OPERATIONS: list[Callable[[Machine], Any]] = [_unknown] * 256
for _codes, _operation in {
    b"(": _push(lambda m: _MARK), b"0": _drop, b"1": Machine.marked, b"2": _push(lambda m: m.stack[-1]),
    b"N": _push(lambda m: None), b"\x88": _push(lambda m: True), b"\x89": _push(lambda m: False),
    b"F": _push(lambda m: float(m.line())), b"G": _push(lambda m: m.number(">d")),
    b"IL": _push(_text_number), b"J": _push(lambda m: m.number("<i")), b"K": _push(lambda m: m.number("B")),
    b"M": _push(lambda m: m.number("<H")), b"\x8a": _push(lambda m: m.integer(m.number("B"))),
    b"\x8b": _push(lambda m: m.integer(m.number("<i"))),
    b"S": _push(lambda m: m.line()[1:-1]), b"V": _push(lambda m: m.line()),
    b"T": _push(lambda m: m.text("<i")), b"U": _push(lambda m: m.text("B")), b"X": _push(lambda m: m.text("<I")),
    b"\x8c": _push(lambda m: m.text("B")), b"\x8d": _push(lambda m: m.text("<Q")),
    b"C": _push(lambda m: m.read(m.number("B"))), b"B": _push(lambda m: m.read(m.number("<I"))),
    b"\x8e\x96": _push(lambda m: m.read(m.number("<Q"))),
    b"]": _push(lambda m: []), b"}": _push(lambda m: {}), b")": _push(lambda m: ()), b"\x8f": _push(lambda m: set()),
    b"l": _push(Machine.marked), b"t": _push(lambda m: tuple(m.marked())), b"d": _dict, b"\x91": _set,
    b"\x85": _tuple(1), b"\x86": _tuple(2), b"\x87": _tuple(3),
    b"a": lambda m: m.append([m.pop()]), b"e": lambda m: m.append(m.marked()),
    b"s": _setitem, b"u": lambda m: m.setitems(m.marked()), b"\x90": lambda m: m.additems(m.marked()),
    b"c": _push(lambda m: m.name(m.line(), m.line())), b"\x93": _stack_global,
    b"R\x81": _reduce, b"\x92": _new_with_names, b"i": _inst, b"o": _obj, b"b": Machine.build,
    b"P": lambda m: m.persist(m.line()), b"Q": lambda m: m.persist(m.pop()),
    b"g": lambda m: m.get(int(m.line())), b"h": lambda m: m.get(m.number("B")), b"j": lambda m: m.get(m.number("<I")),
    b"p": lambda m: m.put(int(m.line())), b"q": lambda m: m.put(m.number("B")), b"r": lambda m: m.put(m.number("<I")),
    b"\x94": Machine.memoize,
    b"\x80": lambda m: m.read(1), b"\x95": lambda m: m.read(8), b"\x82\x83\x84\x97\x98": _extension,
}.items():  # fmt: skip
    for _code in _codes:
        OPERATIONS[_code] = _operation
