"""The call of evenly's own forward out of a subclass's, seen with what that hands on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from evenly.tools.sites import Site

if TYPE_CHECKING:
    from evenly.tools.observe import Sight


@contextmanager
def inner_call(sight: Sight, site: Site, module: nn.Module) -> Iterator[None]:
    """The call of evenly's own forward out of a subclass's, with what that hands on."""
    base: Any = next(c for c in type(module).__mro__ if c.__module__.startswith("evenly.nn") and "forward" in vars(c))
    theirs = base.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self is not module:
            return theirs(self, *args, **kwargs)
        sight.ours(site, args, kwargs)
        try:
            return theirs(self, *args, **kwargs)
        finally:
            sight.left_ours()

    base.forward = forward
    try:
        yield
    finally:
        base.forward = theirs
