"""Classes with arithmetic of their own: seen only where their output proves to be the formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from evenly.tools.observe import Sight
from evenly.tools.sites import Site


def prove(model: nn.Module, known: Mapping[str, Site], run: Callable[[], Any]) -> set[str]:
    """Find the channel axis of classes with arithmetic of their own, by their output in evaluation form.

    A class whose output is not ``weight * (x - mean) / sqrt(var + eps) + bias`` of its running statistics
    on some axis stays unseen.

    Args:
        model: in evaluation form.
        known: its sites; ``axis`` is set where it is proved.
        run: calls the model.

    Returns:
        The names of sites that stay unseen.
    """
    sight = Sight(model, dict(known))
    left = {n: s for n, s in known.items() if s.module is not None and not s.ours}
    last: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                last[name] = (args[0].detach(), output.detach())

        return hook

    with ExitStack() as stack:
        for name, site in left.items():
            if not isinstance(site.module, torch.jit.ScriptModule):
                stack.callback(site.module.register_forward_hook(keep(name)).remove)  # type: ignore[union-attr]
        with sight.on():
            run()
    unseen = set()
    for name, site in left.items():
        if name not in sight.seen.used and name in last:
            site.axis = _axis(site, *last[name])
            if site.axis is None:
                unseen.add(name)
    return unseen


def _axis(site: Site, x: Tensor, y: Tensor) -> int | None:
    channels = len(site.mean)
    for axis in (1, x.ndim - 1):
        if x.shape != y.shape or x.ndim < 2 or x.shape[axis] != channels:
            continue
        shape = [channels if i == axis else 1 for i in range(x.ndim)]
        scale = (site.var.float() + site.eps).rsqrt()
        expected = (x.float() - site.mean.float().view(shape)) * scale.view(shape)
        for key, combine in (("weight", torch.mul), ("bias", torch.add)):
            value = getattr(site.module, key, None)
            if isinstance(value, Tensor):
                expected = combine(expected, value.detach().float().view(shape))
        if torch.allclose(expected, y.float(), rtol=1e-3, atol=1e-3 * float(y.float().abs().amax() + 1e-6)):
            return axis
    return None
