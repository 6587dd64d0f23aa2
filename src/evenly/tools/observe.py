"""The sight: which statistics a norm uses, and of what, seen at the call that normalises.

torch's batch norms, whoever calls them (modules, subclasses, functional calls, plain lists, traced,
scripted and exported programs), arrive at one operator of the dispatcher, where they are seen.
evenly's layers are seen at their own call. A class with arithmetic of its own is seen only where
its output proves to be the formula. Here, too, other statistics can be handed to a norm; nothing
is written into the model, and in training form no running statistic moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode

from evenly.core.moments import Moments
from evenly.tools.inner import inner_call
from evenly.tools.measure import moments_of
from evenly.tools.sites import Site, is_ours, modules, sites

Given = Callable[[Site], tuple[Tensor, Tensor] | None]

# Positions of (running mean, running variance, training, eps) among an operator's arguments.
_aten = torch.ops.aten
_OPERATORS: dict[Any, tuple[int, int, int | None, int]] = {
    _aten.native_batch_norm.default: (3, 4, 5, 7),
    _aten._native_batch_norm_legit.default: (3, 4, 5, 7),
    _aten.cudnn_batch_norm.default: (3, 4, 5, 7),
    _aten.miopen_batch_norm.default: (3, 4, 5, 7),
    _aten._native_batch_norm_legit_no_training.default: (3, 4, None, 6),
    _aten._batch_norm_no_update.default: (3, 4, None, 6),
}
_TRAINING = {_aten._batch_norm_with_update.default, _aten._native_batch_norm_legit.no_stats}
_RANDOM = ("bernoulli", "native_dropout", "rand", "normal_", "uniform_", "multinomial")


class Call(NamedTuple):
    """One call of a norm.

    Args:
        site: whose.
        x: what is normalised.
        channel: its channel axis.
        mask: where elements count, or None.
        used: ``"batch"`` or ``"running"``: whose statistics.
        tracked: whether the running statistics were at hand (a layer whose ``track_running_stats`` is
            off does not pass them in training).
    """

    site: Site
    x: Tensor
    channel: int
    mask: Tensor | None
    used: str
    tracked: bool = True

    def moments(self) -> Moments:
        """Of each channel."""
        return moments_of(self.x, self.channel, self.mask)


@dataclass
class Seen:
    """What was seen while the sight was on.

    Args:
        used: ``"batch"``, ``"running"`` or ``"both"``, by site, in the order of calls.
        calls: how often each site was called.
        untracked: sites whose running statistics were not at hand in a call.
        unknown: calls with batch statistics that belong to no site.
        instance: calls of instance norms that used running statistics.
        random: the modules in which random numbers were drawn.
    """

    used: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    untracked: set[str] = field(default_factory=set)
    unknown: dict[str, int] = field(default_factory=dict)
    instance: set[str] = field(default_factory=set)
    random: dict[str, str] = field(default_factory=dict)

    def add(self, call: Call) -> None:
        """Note one call."""
        name = call.site.name
        before = self.used.setdefault(name, call.used)
        self.used[name] = before if before == call.used else "both"
        self.calls[name] = self.calls.get(name, 0) + 1
        if not call.tracked:
            self.untracked.add(name)


class Sight(TorchDispatchMode):
    """Sees the norms of a model while it is on.

    Args:
        known: the sites, by name; those that only calls show are added.
        see: takes each call of a site.
        given: says which mean and variance a site shall use in this call, None: its own.
    """

    def __init__(
        self,
        model: nn.Module,
        known: dict[str, Site] | None = None,
        see: Callable[[Call], None] | None = None,
        given: Callable[[Call], tuple[Tensor, Tensor] | None] | None = None,
    ) -> None:
        super().__init__()
        self.sites = sites(model) if known is None else known
        self.seen = Seen()
        self._model, self._see, self._given = model, see, given
        self._names = {id(t): n for n, t in (*model.named_parameters(), *model.named_buffers())}
        self._by_tensor = {
            id(t): s for s in self.sites.values() for t in (s.mean, getattr(s.module, "weight", None)) if t is not None
        }
        self._path: list[tuple[str, nn.Module]] = []
        self._quiet = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """An operator on its way to its kernel."""
        if not self._quiet:
            if func in _OPERATORS or func in _TRAINING:
                return self._norm(func, list(args), kwargs or {})
            if any(word in func.__name__ for word in _RANDOM):
                name, module = self._path[-1] if self._path else ("", self._model)
                self.seen.random.setdefault(name, type(module).__name__)
        return func(*args, **(kwargs or {}))

    def _norm(self, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if func in _TRAINING:  # the same arguments without the flag
            stats = (3, 4) if func is _aten._batch_norm_with_update.default else ()
            mean, var, training, eps = (args[3], args[4], True, args[-1]) if stats else (None, None, True, args[-1])
        else:
            at_mean, at_var, at_training, at_eps = _OPERATORS[func]
            mean, var, eps = args[at_mean], args[at_var], args[at_eps]
            training = at_training is not None and bool(args[at_training])
        if self._path and isinstance(self._path[-1][1], _InstanceNorm):
            if not training:
                self.seen.instance.add(self._path[-1][0])
            return func(*args, **kwargs)
        x, used = args[0], "batch" if training or mean is None else "running"
        site = self._site(mean, var, args[1], eps)
        if site is None:
            if used == "batch":
                name = self._path[-1][0] if self._path else ""
                self.seen.unknown[name] = self.seen.unknown.get(name, 0) + 1
            return func(*args, **kwargs)
        call = Call(site, x, 1, None, used, mean is not None)
        other = self._noted(call)
        if other is None and used == "running":
            return func(*args, **kwargs)
        if other is None and mean is not None:  # the batch may use its own statistics, but must not enter
            other = self._of_batch(x, func, args, eps)
            if other is None:
                return func(*args, **kwargs)
        return func(*args, **kwargs) if other is None else _with(func, args, *other, eps, mean)

    def _of_batch(self, x: Tensor, func: Any, args: list[Any], eps: float) -> tuple[Tensor, Tensor] | None:
        self._quiet += 1
        try:
            m = moments_of(x)
        finally:
            self._quiet -= 1
        return m.mean, m.var

    def _noted(self, call: Call) -> tuple[Tensor, Tensor] | None:
        """Note a call, show it, and ask for other statistics; our own operators are not seen meanwhile."""
        self.seen.add(call)
        self._quiet += 1
        try:
            if self._see is not None:
                self._see(call)
            return None if self._given is None else self._given(call)
        finally:
            self._quiet -= 1

    def _site(self, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, eps: float) -> Site | None:
        """Whose call it is: by its running mean, its weight, or the module that is at work."""
        for tensor in (mean, weight):
            if tensor is not None and id(tensor) in self._by_tensor:
                return self._by_tensor[id(tensor)]
        at = self._path[-1][0] if self._path else ""
        if at in self.sites and (mean is None or mean.shape == self.sites[at].mean.shape):
            return self.sites[at]
        if mean is None or var is None:
            return None
        key, var_key = self._names.get(id(mean)), self._names.get(id(var))
        if key is None and not self._is_kept(mean):
            return None
        name = (key or at or "functional").removesuffix(".running_mean")
        while name in self.sites:
            name += "'"
        site = Site(name, mean, var, None, None, (key, var_key, None), eps, key is not None)
        self.sites[name] = self._by_tensor[id(mean)] = site
        return site

    def _is_kept(self, tensor: Tensor) -> bool:
        """Whether the module at work keeps this tensor in an attribute that torch does not know of."""
        return bool(self._path) and any(tensor is value for value in vars(self._path[-1][1]).values())

    @contextmanager
    def on(self) -> Iterator[Sight]:
        """Look, while it lasts."""
        with ExitStack() as stack:
            for name, module, _ in modules(self._model):
                stack.enter_context(_hooks(self, name, module))
            stack.enter_context(self)
            yield self

    def enter(self, name: str, module: nn.Module) -> None:
        """A module begins."""
        self._path.append((name, module))

    def leave(self) -> None:
        """It ends."""
        self._path.pop()

    def ours(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A layer of evenly's is about to be called; the kernels behind it are not seen."""
        module = site.module
        assert module is not None
        x = args[0] if args else kwargs.get("input", next(iter(kwargs.values())))
        mask = kwargs.get("mask", args[2] if len(args) > 2 else None)
        batch = module.training and not site.frozen
        tracks = bool(getattr(module, "track_running_stats", True)) or not batch
        call = Call(site, x, int(getattr(module, "channel", 1)) % x.ndim, mask, "batch" if batch else "running", tracks)
        other = self._noted(call) if x.numel() else None
        self._quiet += 1
        if other is not None:
            module.training = False
            site.write(*other)

    def left_ours(self) -> None:
        """It was called."""
        self._quiet -= 1

    def own(self, site: Site, x: Tensor) -> None:
        """A class with arithmetic of its own, whose output was found to be the formula on ``site.axis``."""
        assert site.module is not None
        assert site.axis is not None
        other = self._noted(Call(site, x, site.axis % x.ndim, None, "batch" if site.in_training else "running"))
        if other is not None:
            site.module.training = False
            site.write(*other)


def _with(func: Any, args: list[Any], mean: Tensor, var: Tensor, eps: float, like: Tensor | None) -> Any:
    """The operator's evaluation form with other statistics."""
    x, weight = args[0], args[1]
    dtype = like.dtype if like is not None else weight.dtype if weight is not None else x.dtype
    mean, var = (t.to(device=x.device, dtype=dtype) for t in (mean, var))
    found = torch.native_batch_norm(x, weight, args[2], mean, var, False, 0.0, eps)
    number = len(func._schema.returns)
    return (*found, found[0].new_empty(0))[:number]


@contextmanager
def _hooks(sight: Sight, name: str, module: nn.Module) -> Iterator[None]:
    """The path of modules at work, and the calls that the dispatcher does not see."""
    site = sight.sites.get(name)
    ours = site is not None and is_ours(module)
    own_forward = ours and not type(module).forward.__module__.startswith("evenly.")

    def before(m: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        sight.enter(name, m)
        if site is not None and ours and not own_forward:
            sight.ours(site, args, kwargs)
        elif site is not None and site.axis is not None and args and isinstance(args[0], Tensor):
            sight.own(site, args[0])

    def after(m: nn.Module, args: Any, output: Any) -> None:
        if site is not None and ours and not own_forward:
            sight.left_ours()
        sight.leave()

    with ExitStack() as stack:
        if isinstance(module, torch.jit.ScriptModule):
            yield
            return
        # Last of all: what other hooks did to the input has been done.
        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(after, prepend=True, always_call=True).remove)
        if own_forward:
            assert site is not None
            stack.enter_context(inner_call(sight, site, module))
        yield
