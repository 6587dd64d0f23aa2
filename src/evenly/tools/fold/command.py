"""What the command `fold` does: fold, write a file that is run again and compared, or check somebody else's."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evenly.tools import checkpoint, command, files, fit
from evenly.tools.fold import certificate
from evenly.tools.fold.folding import fold
from evenly.tools.fold.running import Runner, runner
from evenly.tools.fold.trace import tensors

FORMATS = (".pt2", ".onnx", ".safetensors")


def shapes(given: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """``"1,3,224,224"`` as sizes, one for each input.

    Raises:
        ValueError: it is none.
    """
    found = []
    for text in given:
        parts = text.replace("x", ",").split(",")
        if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            raise ValueError(f"--inputs {text!r} is no shape; write sizes such as 1,3,224,224, once for each input.")
        found.append(tuple(int(part) for part in parts))
    return tuple(found)


def prepare(model: str, weights: str | None, inputs: Sequence[str], out: str, force: bool) -> tuple[nn.Module, Any]:
    """The user's model in evaluation, with its weights, and an example.

    Raises:
        ValueError: something asked for cannot be; nothing was written.
    """
    if Path(out).suffix not in FORMATS:
        raise ValueError(f"--out {out}: write to a file that ends in {', '.join(FORMATS)}.")
    if not inputs:
        raise ValueError("fold needs the model's input: --inputs 1,3,224,224, once for each input.")
    if Path(out).exists() and not force:
        raise ValueError(f"{out} exists; name another file, or say --force.")
    needs = {".onnx": "onnxscript", ".safetensors": "safetensors"}.get(Path(out).suffix)
    if needs is not None:
        _needed(needs)
    sizes = shapes(inputs)
    subject = command.model_at(model)
    if weights is not None:
        fit.load(subject, checkpoint.read(weights))
    return subject.eval(), example_of(sizes, subject)


def check_outputs(weights: str | None, *outputs: str | None) -> None:
    """Refuse outputs that are one file, that are read, or that lie in no folder.

    Raises:
        ValueError: which, and why.
    """
    files.check_outputs(dict(zip(("--out", "--json", "--html"), outputs, strict=True)), [weights])


def write_certificate(folded: nn.Module, json_file: str | None, html: str | None) -> None:
    """The certificate as JSON and as a page, where they are asked for."""
    paper: Any = folded.certificate
    if json_file is not None:
        with beside(Path(json_file)) as draft:
            draft.write_text(json.dumps(paper, indent=2) + "\n", "utf-8")
    if html is not None:
        with beside(Path(html)) as draft:
            page = f'<!doctype html><meta charset="utf-8"><title>Fold</title>{certificate.section(paper)}'
            draft.write_text(page, "utf-8")


def _needed(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ValueError(f"writing this needs {package}: pip install {package}.")


def example_of(sizes: tuple[tuple[int, ...], ...], model: nn.Module | None = None) -> tuple[Tensor, ...]:
    """Random input of these sizes, the same every time, in the model's type."""
    source = torch.Generator().manual_seed(0)
    first = next((p for p in model.parameters() if p.is_floating_point()), None) if model is not None else None
    dtype = torch.float32 if first is None else first.dtype
    return tuple(torch.randn(size, generator=source).to(dtype) for size in sizes)


def carry_out(subject: nn.Module, example: tuple[Tensor, ...], out: str, prune: bool) -> tuple[nn.Module, list[str]]:
    """Fold, write, run what was written and compare; the lines to print.

    Raises:
        ValueError: the model cannot be folded or exported, or the file answers something else; nothing is left.
    """
    folded = fold(subject, example, prune=prune)
    lines = [certificate.text(folded.certificate)]  # type: ignore[arg-type]
    path = Path(out)
    with beside(path) as draft:
        batch = _write(folded, example, draft)
        worst = _run_again(draft, folded, example)
        limit = _limit(folded, example)
        if not worst <= limit:
            raise ValueError(
                f"{path.name} answers {worst:.1e} from the folded model, more than {limit:.1e}; not written."
            )
    state = folded.state_dict()
    lines.append(f"wrote {out}: {batch}; run again, {worst:.1e} from the folded model")
    lines.append(
        f"{len(state)} tensors, {sum(t.numel() for t in state.values())} numbers; digest {_digest(folded)[:16]}"
    )
    return folded, lines


def _digest(folded: nn.Module) -> str:
    paper: Any = folded.certificate
    return str(paper["digest"])


def _limit(folded: nn.Module, example: tuple[Tensor, ...]) -> float:
    with torch.no_grad():
        answers = tensors(folded(*example))
    largest = max((float(t.abs().max()) for t in answers if t.numel()), default=1.0)
    return 256 * torch.finfo(example[0].dtype).eps * max(largest, 1e-30)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that takes its name at the end, and goes away after an error."""
    handle, name = tempfile.mkstemp(suffix=path.suffix, prefix=".evenly-", dir=path.parent)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        mask = os.umask(0)
        os.umask(mask)
        draft.chmod(0o666 & ~mask)  # as a file that is simply opened
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _write(folded: nn.Module, example: tuple[Tensor, ...], draft: Path) -> str:
    """Write in the form of the ending; which batches it takes."""
    if draft.suffix == ".safetensors":
        from safetensors.torch import save_file

        state = {name: tensor.detach().contiguous().clone() for name, tensor in folded.state_dict().items()}
        save_file(state, draft, metadata={"certificate": json.dumps(folded.certificate)})
        return "the state_dict of what is left; load it into the folded model"
    program, batch = _exported(folded, example)
    if draft.suffix == ".pt2":
        torch.export.save(program, draft, extra_files={"certificate.json": json.dumps(folded.certificate)})
        return batch
    with _quiet():
        onnx = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
        assert onnx is not None
        onnx.save(str(draft))
    return batch


def _exported(folded: nn.Module, example: tuple[Tensor, ...]) -> tuple[torch.export.ExportedProgram, str]:
    """The exported program, for every number of samples where that can be."""
    two = tuple(torch.cat([x, x]) if x.shape[0] == 1 else x for x in example)  # one sample would be taken for fixed
    free: Any = tuple({0: torch.export.Dim.DYNAMIC} for _ in two)
    with _quiet(), torch.no_grad():
        try:
            return torch.export.export(folded, two, dynamic_shapes=free), "any number of samples"
        except Exception:
            try:
                return torch.export.export(folded, example), f"{example[0].shape[0]} samples, as in --inputs"
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".split("\n")[0]
                raise ValueError(
                    f"the folded model cannot be exported: {reason[:200]}; write a .safetensors."
                ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own messages; their errors come as exceptions."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _run_again(draft: Path, folded: nn.Module, example: tuple[Tensor, ...]) -> float:
    """The largest difference between what was written, read and run anew, and the folded model."""
    source = torch.Generator().manual_seed(1)
    other = tuple(torch.randn(x.shape, generator=source).to(x.dtype) for x in example)
    written: Any
    if draft.suffix == ".safetensors":
        import copy

        from safetensors.torch import load_file

        twin = copy.deepcopy(folded)
        twin.load_state_dict(load_file(draft))
        written = Runner(lambda *xs: twin(*xs))
    else:
        written = runner(str(draft), None)
    worst = 0.0
    for inputs in (example, other):
        with torch.no_grad():
            expected = tensors(folded(*inputs))
        worst = max(worst, distance(written.run(inputs), expected))
    return worst


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference of two lists of tensors; infinite where they are of other shapes."""
    if len(one) != len(other) or any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return float("inf")
    pairs = [(a.double() - b.double()).abs() for a, b in zip(one, other, strict=True) if a.numel()]
    return max((float(d.max()) if not d.isnan().any() else float("inf") for d in pairs), default=0.0)


def check(first: str, second: str, model: str | None, inputs: Sequence[str]) -> tuple[str, bool]:
    """Whether the folded ``first`` computes what the original ``second`` does; a line, and the verdict.

    The original is run in float64 where it can be; the fold may be eight times as far from it as the
    original in its own type.

    Raises:
        ValueError: a file cannot be run.
    """
    one, other = runner(first, model), runner(second, model)
    sizes = shapes(inputs) or one.sizes or other.sizes
    if not sizes:
        raise ValueError(f"neither {first} nor {second} says its input; add --inputs 1,3,224,224, once for each input.")
    worst = own = largest = 0.0
    for seed in range(3):
        source = torch.Generator().manual_seed(seed)
        xs = tuple(torch.randn(size, generator=source) for size in sizes)
        right, low, found = other.exact(xs), other.run(xs), one.run(xs)
        worst, own = max(worst, distance(found, right)), max(own, distance(low, right))
        largest = max([largest, *(float(t.abs().max()) for t in right if t.numel())])
    limit = 8 * own + 64 * torch.finfo(torch.float32).eps * largest
    good = worst <= limit
    verdict = "the same model" if good else "NOT the same model"
    against = "float64" if other.wide is not None else "the original"
    line = (
        f"{first} is {worst:.1e} from {second} in {against}, the original itself {own:.1e}, outputs up to {largest:.1e}"
    )
    return f"{line}: {verdict}", good
