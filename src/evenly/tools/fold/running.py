"""Models in files, run: ONNX by onnxruntime, exported programs, TorchScript, weights with their model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenly.tools import checkpoint, command, fit
from evenly.tools.fold.trace import tensors


@dataclass
class Runner:
    """A model to call.

    Args:
        call: what runs it.
        wide: what runs it in float64, or None.
        sizes: the sizes of its inputs, if the file says them.
    """

    call: Callable[..., Any]
    wide: Callable[..., Any] | None = None
    sizes: tuple[tuple[int, ...], ...] = ()

    def run(self, xs: tuple[Tensor, ...]) -> list[Tensor]:
        """Its outputs."""
        with torch.no_grad():
            return tensors(self.call(*xs))

    def exact(self, xs: tuple[Tensor, ...]) -> list[Tensor]:
        """Its outputs in float64 where it can be run so."""
        if self.wide is None:
            return self.run(xs)
        with torch.no_grad():
            try:
                return tensors(self.wide(*(x.double() for x in xs)))
            except RuntimeError:
                self.wide = None
                return self.run(xs)


def runner(file: str, model: str | None) -> Runner:
    """The model in ``file``; weights alone need ``model``, a MODULE:MODEL.

    Raises:
        ValueError: it cannot be run; the message says what is missing.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"{file}: there is no such file.")
    if path.suffix == ".onnx":
        return _of_onnx(path)
    if path.suffix == ".pt2":
        try:
            program = torch.export.load(path)
        except Exception as error:
            raise ValueError(f"{file} is no exported program ({type(error).__name__}).") from None
        given = program.example_inputs[0] if program.example_inputs else ()
        sizes = tuple(tuple(x.shape) for x in given if isinstance(x, Tensor))
        return Runner(program.module(), None, sizes)
    scripted = _script(path)
    if scripted is not None:
        return Runner(scripted, None)
    if model is None:
        raise ValueError(f"{file} holds weights, not a model; name the model as well: MODULE:MODEL.")
    one, wide = (command.model_at(model).eval() for _ in range(2))
    found = checkpoint.read(file)
    for subject in (one, wide):
        fit.load(subject, found)
    if wide is one:
        import copy

        wide = copy.deepcopy(one)
    return Runner(one, wide.double())


def _script(path: Path) -> Any:
    """The TorchScript in a file, or None."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError:
        return None


def _of_onnx(path: Path) -> Runner:
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError(f"running {path.name} needs onnxruntime: pip install onnxruntime.") from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"onnxruntime cannot read {path.name} ({type(error).__name__}).") from None
    names = [i.name for i in session.get_inputs()]
    shapes = [i.shape for i in session.get_inputs()]
    known = all(isinstance(size, int) for shape in shapes for size in shape[1:])
    sizes = tuple((s[0] if isinstance(s[0], int) else 2, *s[1:]) for s in shapes) if known else ()

    def call(*xs: Tensor) -> Any:
        found = session.run(None, dict(zip(names, (x.numpy() for x in xs), strict=True)))
        return [torch.from_numpy(y) for y in found]

    return Runner(call, None, sizes)
