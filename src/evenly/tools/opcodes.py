"""The operations of a pickle's program, as `evenly.tools.pickles.Machine` carries them out."""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable
from typing import Any

from evenly.tools.pickles import MARK, DamagedError, Machine, key


def load(machine: Machine) -> Any:
    """The object that the next pickle in the machine's file makes.

    Raises:
        DamagedError: it is none, it is cut off, or it takes too many steps.
    """
    machine.begin()
    read, charge = machine.file.read, machine.charge
    collecting = gc.isenabled()
    gc.disable()  # it would look again and again at a million objects that all stay
    try:
        while code := read(1):
            if code == b".":
                return machine.pop()
            charge(1)
            _OPERATIONS[code[0]](machine)
    except (IndexError, KeyError, TypeError, struct.error):
        raise DamagedError("its pickle is damaged.") from None
    finally:
        if collecting:
            gc.enable()
    raise DamagedError("it ends in the middle of a pickle.")


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


_OPERATIONS: list[Callable[[Machine], Any]] = [_unknown] * 256
for _codes, _operation in {
    b"(": _push(lambda m: MARK), b"0": _drop, b"1": Machine.marked, b"2": _push(lambda m: m.stack[-1]),
    b"N": _push(lambda m: None), b"\x88": _push(lambda m: True), b"\x89": _push(lambda m: False),
    b"F": _push(lambda m: float(m.line())), b"G": _push(lambda m: m.number(">d")),
    b"IL": _push(_text_number), b"J": _push(lambda m: m.number("<i")), b"K": _push(lambda m: m.number("B")),
    b"M": _push(lambda m: m.number("<H")), b"\x8a": _push(lambda m: m.integer(m.number("B"))),
    b"\x8b": _push(lambda m: m.integer(m.number("<i"))),
    b"S": _push(lambda m: m.line("unicode-escape")[1:-1]), b"V": _push(lambda m: m.line("raw-unicode-escape")),
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
        _OPERATIONS[_code] = _operation
