"""The worked example section by section: what to look for, and the numbers in a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple
from unicodedata import east_asian_width

from evenly.lab.explain import ASKED, MOMENTUM, RATE, Epoch, Layer, Step, epoch, later, target
from evenly.lab.explain_words import TORCH, WORDS

LEFT = 24  # columns of a row's name
EPOCHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20)
Lang = Literal["en", "zh"]
Words = dict[str, Any]


class Section(NamedTuple):
    """A heading, what to look for, and the numbers; rows of the table are at most 80 wide.

    ``kind`` is that of the table: ``text``, ``list``, or ``picture`` where a page draws it better.
    """

    title: str
    text: str
    table: str
    kind: str = "text"


def sections(lang: Lang = "en") -> Iterator[Section]:
    """The example from the network to the exercises."""
    run = epoch()
    words = WORDS[lang]
    yield _section(words, "why", _picture(run, words), "picture")
    title, text = words["network"]
    start = [*_start(run.steps[0].parameters, words)]
    yield Section(
        title, text.format(rate=RATE, momentum=MOMENTUM, eps=run.eps), "\n".join([*words["formulas"], "", *start])
    )
    yield _section(words, "variances", "")
    before = [0.0, *(step.running_mean[0] for step in run.steps)]
    for number, (step, old) in enumerate(zip(run.steps, before, strict=False), 1):
        yield Section(words["batch_title"].format(number), _remark(number, step, old, words), _batch(step, words))
        if number == 1:
            yield _section(words, "backward", _backward(step, run.eps, words))
    yield _averages(run, words)
    yield _redundant_bias(run, words)
    yield from _prediction(run, words)
    yield _later(words)
    yield from _exercises(run, words)


def _section(words: Words, key: str, table: str, kind: str = "text") -> Section:
    title, text = words[key]
    return Section(title, text, table, kind)


def _picture(run: Epoch, words: Words) -> str:
    """Neuron 1's five values in each batch on a line of characters, before and after the norm."""
    columns = 31
    lines = [f"{'':9}{_pad(words['before'], columns + 3)}{words['after']}"]
    for number, step in enumerate(run.steps, 1):
        cells = []
        for values, low, high in ((step.z, 8.0, 24.0), (step.xhat, -2.0, 2.0)):
            line = ["·"] * columns
            for row in values:
                line[round((row[0] - low) / (high - low) * (columns - 1))] = "o"
            cells.append("".join(line))
        lines.append(f"{_pad(words['batch'], 6)} {number} {cells[0]}   {cells[1]}")
    ends = [f"{low:<{columns // 2}}{high:>{columns - columns // 2}}" for low, high in ((8, 24), (-2, 2))]
    return "\n".join([*lines, f"{'':9}{ends[0]}   {ends[1]}"])


def _start(parameters: dict[str, Any], words: Words) -> Iterator[str]:
    for k, layer in (("1", "first"), ("2", "second")):
        yield from _weights(words[layer], parameters[f"linear{k}.weight"], parameters[f"linear{k}.bias"])
    yield from _weights(words["last"], parameters["last.weight"], parameters["last.bias"])


def _weights(name: str, weight: list[list[float]], bias: list[float]) -> Iterator[str]:
    for number, (row, b) in enumerate(zip(weight, bias, strict=True), 1):
        yield f"{_pad(name if number == 1 else '', LEFT)}W = {' '.join(_numbers(row))}   b = {_number(b)}"


def _remark(number: int, step: Step, old: float, words: Words) -> str:
    if number == 1:
        text: str = words["batch_first"]
        return text.format(
            mean=step.mean[0], kept=1 - MOMENTUM, momentum=MOMENTUM, running=step.running_mean[0],
            var=step.running_var[0],
        )  # fmt: skip
    text = words["batch_next"]
    mean, running = _number(step.mean[0]), _number(step.running_mean[0])
    return text.format(kept=1 - MOMENTUM, old=_number(old), momentum=MOMENTUM, mean=mean, running=running)


def _batch(step: Step, words: Words) -> str:
    """Both hidden layers, the answers, the loss and every gradient of one batch."""
    parameters, second = step.parameters, step.second
    rows = zip(step.inputs, step.z, step.xhat, step.out, strict=True)
    lines = [*_weights(words["first"], step.linear_weight, step.linear_bias), "", _heads("x1", "x2")]
    lines += [f"{a:>8}{b:>8}" + _cells(z, xhat, out) for (a, b), z, xhat, out in rows]
    lines += ["", _neurons("", words), *_statistics(step, step.weight, step.bias, words), ""]
    lines += [*_weights(words["second"], parameters["linear2.weight"], parameters["linear2.bias"])]
    lines += ["", _heads(words["answer"], words["target"])]
    answers = zip(step.answers, step.inputs, second.z, second.xhat, second.out, strict=True)
    lines += [f"{_number(a):>8}{target(x):>8g}" + _cells(z, xhat, out) for a, x, z, xhat, out in answers]
    lines += ["", _neurons("", words)]
    lines += _statistics(second, parameters["norm2.weight"], parameters["norm2.bias"], words)
    lines += ["", *_weights(words["last"], parameters["last.weight"], parameters["last.bias"])]
    lines += [f"{_pad(words['loss'], LEFT)}{_number(step.loss)}", ""]
    return "\n".join([*lines, *_gradients(step.gradients, words)])


def _heads(*first: str) -> str:
    return "".join(_pad(name, 8, right=True) for name in first) + "".join(
        f"{name:>9}" for name in ("z1", "z2", "xhat1", "xhat2", "out1", "out2")
    )


def _cells(*pairs: Sequence[float]) -> str:
    return "".join(f"{cell:>9}" for pair in pairs for cell in _numbers(pair))


def _neurons(name: str, words: Words) -> str:
    return _pad(name, LEFT) + "".join(_pad(f"{words['neuron']} {k}", 12, right=True) for k in (1, 2))


def _statistics(layer: Any, weight: list[float], bias: list[float], words: Words) -> list[str]:
    return [
        _pair(words["mean"], layer.mean),
        _pair(words["std"], layer.std),
        _pair(words["weight"], weight),
        _pair(words["bias"], bias),
        _pair(words["now"].format(words["running_mean"]), layer.running_mean),
        _pair(words["now"].format(words["running_var"]), layer.running_var),
    ]


def _gradients(gradients: dict[str, Any], words: Words) -> list[str]:
    """Of every parameter, layer beside layer."""
    lines = [
        _pad(words["gradients"], LEFT) + _pad(words["first"], 24, right=True) + _pad(words["second"], 26, right=True)
    ]
    names: list[tuple[str, str, str, int | None]] = [
        (f"W, {words['neuron']} {k + 1}", "linear", "weight", k) for k in (0, 1)
    ]
    names += [("b", "linear", "bias", None), (words["weight"], "norm", "weight", None)]
    names += [(words["bias"], "norm", "bias", None)]
    for name, kind, part, row in names:
        pairs = [gradients[f"{kind}{layer}.{part}"] for layer in (1, 2)]
        numbers = [_numbers(pair if row is None else pair[row]) for pair in pairs]
        lines.append(
            _pad(words["of"].format(name), LEFT) + "".join(f"{a:>14}{b:>11}" + " " for a, b in numbers).rstrip()
        )
    last = [*gradients["last.weight"][0], *gradients["last.bias"]]
    return [*lines, f"{_pad(words['last'], LEFT)}W: {' '.join(_numbers(last[:2]))}   b: {_number(last[2])}"]


def _backward(step: Step, eps: float, words: Words) -> str:
    """The gradient through ReLU, scale and norm for neuron 1, from what arrives above it to W."""
    g = [d[0] if out[0] > 0 else 0.0 for d, out in zip(step.out_grad, step.out, strict=True)]
    xhat, dz = [row[0] for row in step.xhat], [row[0] for row in step.z_grad]
    products = [a * b for a, b in zip(g, xhat, strict=True)]
    factor = step.weight[0] / (step.std[0] ** 2 + eps) ** 0.5
    lines = [
        "dβ = sum(g)     dγ = sum(g·xhat)     dW = sum(dz·x)     db = sum(dz)",
        f"dz = γ / sqrt(std² + ε) · (g - {words['average']}(g) - xhat · {words['average']}(g·xhat))",
        f"γ / sqrt(std² + ε) = {_number(step.weight[0])} / sqrt({step.std[0] ** 2:g} + {eps:g}) = {_number(factor)}",
        "",
        f"{'':12}" + "".join(f"{name:>11}" for name in ("x1", "x2", "xhat", "g", "g·xhat", "dz")),
    ]
    for (a, b), *values in zip(step.inputs, xhat, g, products, dz, strict=True):
        lines.append(f"{'':12}{a:>11}{b:>11}" + "".join(f"{v:>11}" for v in _numbers(values)))
    for name, over in ((words["sum"], 1), (words["average"], 5)):
        sums = _numbers(sum(column) / over for column in (xhat, g, products, dz))
        lines.append(f"{_pad(name, 34)}" + "".join(f"{v:>11}" for v in sums))
    lines += ["", f"dβ = {_number(step.bias_grad[0])}     dγ = {_number(step.weight_grad[0])}"]
    lines += [f"dW = {' '.join(_numbers(step.linear_weight_grad[0]))}     db = {_number(step.linear_bias_grad[0])}"]
    return "\n".join(lines)


def _averages(run: Epoch, words: Words) -> Section:
    title, text = words["averages"]
    heads = [f"{words['neuron']} {k}: {words[what]}" for k, what in ((1, "mean"), (2, "mean"), (1, "running_var"))]
    lines = [_pad(words["batch"], 6) + "".join(_pad(head, 24, right=True) for head in heads)]
    for number, step in enumerate(run.steps, 1):
        unbiased = step.std[0] ** 2 * len(step.inputs) / (len(step.inputs) - 1)
        columns = (
            (step.mean[0], step.running_mean[0]),
            (step.mean[1], step.running_mean[1]),
            (unbiased, step.running_var[0]),
        )
        lines.append(f"{number:>6}" + "".join(f"{_number(a):>13}{_number(b):>11}" for a, b in columns))
    left = (1 - MOMENTUM) ** len(run.steps)
    return Section(title, text.format(kept=1 - MOMENTUM, momentum=MOMENTUM, left=left), "\n".join(lines))


def _redundant_bias(run: Epoch, words: Words) -> Section:
    heads = ("b", f"W, {words['neuron']} 1", "γ", "β")
    lines = [_pad(words["batch"], 6) + "".join(_pad(words["of"].format(head), 18, right=True) for head in heads)]
    for number, step in enumerate(run.steps, 1):
        cells = (step.linear_bias_grad, step.linear_weight_grad[0], step.weight_grad, step.bias_grad)
        lines.append(f"{number:>6}" + "".join(f"{a:>10}{b:>8}" for a, b in map(_numbers, cells)))
    return _section(words, "redundant", "\n".join(lines))


def _prediction(run: Epoch, words: Words) -> Iterator[Section]:
    asked = run.prediction
    lines = [f"x = {ASKED[0]}, {ASKED[1]}"]
    for layer, name in zip(asked.layers, ("first", "second"), strict=True):
        lines += ["", *_weights(words[name], layer.linear_weight, layer.linear_bias), _neurons("", words)]
        lines += _layer(layer, words)
    weight = " + ".join(
        f"{_number(w)} · {_number(o)}" for w, o in zip(asked.last_weight, asked.layers[-1].out, strict=True)
    )
    lines += ["", f"{words['answer']} = {weight} + {_number(asked.last_bias)} = {_number(asked.alone)}"]
    yield _section(words, "predicted", "\n".join(lines))
    title, text = words["in_company"]
    rows = [
        _pad(words["company"], 30) + "".join(_pad(words[mode], 11, right=True) for mode in ("evaluation", "training"))
    ]
    rows += [f"{_pad(words['alone'], 30)}{_number(asked.alone):>11}   {words['refused']}"]
    for number, (among, training) in enumerate(zip(asked.among, asked.training, strict=True), 1):
        rows.append(f"{_pad(words['four'].format(number), 30)}{_number(among):>11}{_number(training):>11}")
    rows.append(f"{_pad(words['thirty'], 30)}{_number(asked.among_all):>11}")
    debiased = _number(epoch("debiased").prediction.alone)
    yield Section(title, text.format(target=target(ASKED), debiased=debiased), "\n".join(rows))


def _layer(layer: Layer, words: Words) -> list[str]:
    named = (
        ("z", layer.z), (words["running_mean"], layer.running_mean), (words["running_var"], layer.running_var),
        ("xhat", layer.xhat), (words["weight"], layer.weight), (words["bias"], layer.bias), ("out", layer.out),
    )  # fmt: skip
    return [_pair(name, values) for name, values in named]


def _later(words: Words) -> Section:
    """More epochs, until the sample's answer is right and stays so."""
    title, text = words["later"]
    found = later(EPOCHS)
    wrong = [at.epochs for at in found if (at.answer > 0.5) != (target(ASKED) > 0.5)]
    settled = next(at.epochs for at in found if abs(at.running_mean[0] - found[-1].running_mean[0]) < 1)
    first = next(at.epochs for at in found if at.epochs > max(wrong, default=0))
    heads = ("epochs", "running_mean", "answer", "loss", "right")
    lines = [_pad(words[heads[0]], 8) + "".join(_pad(words[head], 14, right=True) for head in heads[1:])]
    for at in found:
        numbers = [*_numbers((at.running_mean[0], at.answer, at.loss)), str(at.right)]
        lines.append(f"{at.epochs:>8}" + "".join(f"{n:>14}" for n in numbers))
    return Section(title, text.format(settled=settled, epoch=first), "\n".join(lines))


def _exercises(run: Epoch, words: Words) -> Iterator[Section]:
    yield _section(words, "torch", TORCH)
    first, second = run.steps[0], run.steps[1]
    last, answer = run.steps[-1].running_mean, run.prediction.alone
    yield Section(words["prints"], "", f"{' '.join(_numbers(last))}   {_number(answer)}")
    yield _section(words, "exercises", "\n".join(f"{i}. {q}" for i, q in enumerate(words["questions"], 1)), "list")
    numbers = {
        "mean1": first.mean[0], "mean2": first.mean[1], "std2": first.std[1], "moved": first.mean[0] + 100,
        "kept": 1 - MOMENTUM, "momentum": MOMENTUM, "old2": _number(first.running_mean[1]),
        "new2": _number(second.mean[1]), "after2": _number(second.running_mean[1]), "next1": _number(second.mean[0]),
        "half": _number(0.5 * 0.5 * first.mean[0] + 0.5 * second.mean[0]),
    }  # fmt: skip
    solved = [f"{i}. {solution.format(**numbers)}" for i, solution in enumerate(words["solutions"], 1)]
    yield _section(words, "answers", "\n".join(solved), "list")


def _pair(name: str, values: Iterable[float]) -> str:
    return _pad(name, LEFT) + "".join(f"{n:>12}" for n in _numbers(values))


def _numbers(values: Iterable[float]) -> list[str]:
    return [_number(v) for v in values]


def _number(value: float) -> str:
    """Four decimals; adding 0 turns a rounded -0 into 0."""
    return f"{round(value, 4) + 0.0:.4f}"


def width(text: str) -> int:
    """Columns in a terminal, where a Chinese character takes two."""
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def _pad(text: str, columns: int, *, right: bool = False) -> str:
    space = " " * max(columns - width(text), 0)
    return space + text if right else text + space
