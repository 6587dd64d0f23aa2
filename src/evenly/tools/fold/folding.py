"""`evenly.fold`: norms taken into the layers beside them, in a plain copy of the model, with a certificate."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import fx, nn

from evenly.tools import fuse as fusing
from evenly.tools import walk
from evenly.tools.fold import certificate, norms, rebuild, shrink, trace
from evenly.tools.fold.norms import Refused
from evenly.tools.fold.record import begin
from evenly.tools.fold.rules import fold_all
from evenly.tools.fold.trace import Example
from evenly.tools.fold.work import Work


def fold(model: nn.Module | torch.export.ExportedProgram, example_inputs: Any, *, prune: bool = False) -> nn.Module:
    """A plain torch model for deployment, with the norms folded into the layers beside them.

    ``W' = a W`` and ``b' = a b + c`` for a norm ``a y + c`` behind a layer, ``W' = W a`` and
    ``b' = b + W c`` for one before it, in float64, rounded once. Every fold is run on the example and
    on random input and compared with float64; what cannot be folded exactly is left, with the reason.

    Args:
        model: in evaluation; it is not changed. Or a `torch.export.ExportedProgram` of it.
        example_inputs: what the model is called with: a tensor, a tuple of arguments, or a dictionary
            of arguments by name. Two samples are enough; every value is kept while folding.
        prune: whether channels that are constant for every input are removed.

    Returns:
        A copy of the model's own class, where replacing layers is enough, else a
        `torch.fx.GraphModule`; without classes of evenly. ``.certificate`` is a dictionary of plain
        values: ``folds`` (into, from, rule, error_example, error_random, bound), ``refused`` (where,
        reason), ``form`` (``"module"`` or ``"graph"``), ``schema``, ``torch``, ``digest`` (of the
        weights), ``cloned``, ``pruned``, ``biases``, and ``model``, the error of the whole.

    Raises:
        ValueError: the model is in training mode, or cannot be traced; the message says what to pass.
        RuntimeError: the folded model is further from float64 than rounding explains; nothing is returned.

    Source:
        Jacob et al., 2018, https://arxiv.org/abs/1712.05877; the sum of branches is Ding et al., 2021,
        https://arxiv.org/abs/2101.03697.

    Example:
        >>> import torch, evenly
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> folded = evenly.fold(model, torch.randn(2, 3, 8, 8))
        >>> folded[1], folded.certificate["folds"][0]["rule"]
        (Identity(), 'norm after convolution')
    """
    original = trace.unwrapped(model)
    _check(original)
    example = Example.of(example_inputs)
    random = torch.get_rng_state()
    try:
        twin = original if isinstance(original, torch.export.ExportedProgram) else _copied(original)
        program = trace.read(twin, example)
        missed = trace.unread(program, original) if isinstance(original, nn.Module) else {}
        work = begin(program, example)
        folds, refused = fold_all(work)
        refused += [{"where": name, "reason": reason} for name, reason in missed.items()]
        biases = shrink.drop_biases(work)
        pruned = shrink.prune(work) if prune else []
        form, folded, cloned = _built(work, example)
        whole = _compared(original, folded, example)
    finally:
        torch.set_rng_state(random)
    paper = certificate.make(form, folds, refused, folded, cloned=cloned, pruned=pruned, biases=biases, model=whole)
    return rebuild.attach(folded, paper)


def _check(model: Any) -> None:
    if isinstance(model, torch.export.ExportedProgram):
        return
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("fold cannot read TorchScript; pass the torch.nn.Module that was scripted.")
    if not isinstance(model, nn.Module):
        raise ValueError(f"fold takes a torch.nn.Module or an ExportedProgram, got {type(model).__name__}.")
    if model.training:
        raise ValueError("fold is for evaluation and the model is in training mode; call model.eval() first.")
    lazy = [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ValueError(f"{lazy[0]} has no shape yet; run the model once before folding.")


def _copied(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    for module in twin.modules():
        fusing.unfuse(module)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):  # evenly's own only watch and freeze
            for key in [k for k, hook in hooks.items() if str(getattr(hook, "__module__", "")).startswith("evenly.")]:
                del hooks[key]
    return twin


def _built(work: Work, example: Example) -> tuple[str, nn.Module, list[str]]:
    """The copy of the class if it answers as it should, else the graph."""
    try:
        folded = copy.deepcopy(_module_of(work))
        example.run(folded)
        return "module", folded, []
    except (rebuild.Structural, AttributeError, TypeError, NotImplementedError):
        graph, cloned = rebuild.as_graph(work)
        return "graph", graph, cloned


def _module_of(work: Work) -> nn.Module:
    return rebuild.as_module(work)


def _compared(original: Any, folded: nn.Module, example: Example) -> dict[str, float]:
    """The whole model's error against float64, beside the unfolded one's.

    Raises:
        RuntimeError: it is more than eight times as large.
    """
    unfolded: Any = original.module() if isinstance(original, torch.export.ExportedProgram) else original
    before, after = trace.tensors(example.run(unfolded)), trace.tensors(example.run(folded))
    exact = _in_float64(unfolded, example) or before
    error = rounding = largest = 0.0
    for was, now, right in zip(before, after, exact, strict=True):
        if was.shape != now.shape or was.dtype != now.dtype:
            raise RuntimeError("the folded model's output has another shape or type; please report this model.")
        if not was.is_floating_point() or not was.numel():
            continue
        finite = right.double().isfinite() & was.double().isfinite()
        if not now.isfinite()[finite].all():
            raise RuntimeError("the folded model overflows where the model does not; please report this model.")
        error = max(error, _distance(now, right, finite))
        rounding = max(rounding, _distance(was, right, finite), _distance(was, now, finite) / 64)
        largest = max(largest, float(right.double().abs()[finite].max()) if finite.any() else 0.0)
        floor = 1e-10 if was.dtype == torch.float64 else 64 * torch.finfo(was.dtype).eps  # float64 has no better judge
        if error > 8 * rounding + floor * largest:
            raise RuntimeError(
                f"the folded model is {error:.1e} from float64, the model {rounding:.1e}; please report this model."
            )
    return {"error": error, "unfolded": rounding, "largest": largest}


def _distance(one: Any, other: Any, where: Any) -> float:
    difference = (one.double() - other.double()).abs()[where]
    return float(difference.max()) if difference.numel() else 0.0


def _in_float64(model: Any, example: Example) -> list[Any] | None:
    """What the model answers in float64; None where it cannot run in it."""

    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin = copy.deepcopy(model).double()
            args, kwargs = torch.utils._pytree.tree_map(wide, (example.args, dict(example.kwargs)))
            found = trace.tensors(Example(args, kwargs).run(twin))
            return found if all(t.dtype == torch.float64 or not t.is_floating_point() for t in found) else None
    except Exception:
        return None


__all__ = ["Refused", "fold", "fx", "norms", "walk"]
