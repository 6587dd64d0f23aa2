"""Names from files and users, made fit to be shown: on a terminal, on a page, in a picture.

A checkpoint's keys, a module's names and a file's name may hold anything: sequences that a terminal
obeys, line ends that forge a line of ours, signs that turn the reading direction. What is shown
passes here; what is looked up, or written as JSON, stays as it was given.
"""

from __future__ import annotations

import html
import unicodedata
from typing import Any

LONGEST = 200  # signs of one name
# Control, format (zero width, direction), surrogate, private, line and paragraph separators: shown by their number.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: object, longest: int | None = LONGEST) -> str:
    r"""The text with every sign that is not one to be seen written as its number, and cut if it is long.

    Example:
        >>> print(visible("bn\x1b[2J\nok\u202e"))
        bn\x1b[2J\x0aok\u202e
        >>> visible("layer1.bn"), len(visible("x" * 10_000))
        ('layer1.bn', 200)
    """
    shown = str(text)
    if longest is not None and len(shown) > longest:
        left = f"…({len(shown):,} signs)…"
        head = (longest - len(left)) * 2 // 3
        shown = f"{shown[:head]}{left}{shown[head + len(left) - longest :]}"
    return shown if shown.isascii() and shown.isprintable() else "".join(map(_sign, shown))


def line(text: object) -> str:
    """One line of any length: white space runs together, the rest as `visible`."""
    return visible(" ".join(str(text).split()), None)


def block(text: object) -> str:
    """Several lines of ours: as `visible`, line ends stay."""
    return "\n".join(visible(part, None) for part in str(text).split("\n"))


def markup(text: object) -> str:
    """The text for `_repr_html_`: visible, and no tag in it is one."""
    return html.escape(block(text))


def shown_everywhere(value: Any) -> Any:
    """A picture's specification with every text in it, keys too, as `visible` at any length."""
    if isinstance(value, dict):
        return {shown_everywhere(key): shown_everywhere(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown_everywhere(item) for item in value]
    return visible(value, None) if isinstance(value, str) else value


def _sign(sign: str) -> str:
    if unicodedata.category(sign) not in _HIDDEN:
        return sign
    number = ord(sign)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
