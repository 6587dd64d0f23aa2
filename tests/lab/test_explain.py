"""The worked example, recomputed in plain Python numbers."""

from __future__ import annotations

import html
import re
from math import sqrt
from pathlib import Path

import pytest
from click.testing import CliRunner

from evenly.cli import main
from evenly.lab import explain, explain_page, explain_sections, explain_words
from evenly.lab.explain import ASKED, MOMENTUM, RATE, Epoch, Step, target

CLOSE = 1e-10  # float64, a few hundred operations, values up to 30


@pytest.fixture(scope="module")
def run() -> Epoch:
    """One epoch, computed by evenly's layers."""
    return explain.epoch()


class Dual:
    """A number and its derivative by one parameter: just enough arithmetic for the network."""

    def __init__(self, value, slope=0.0):
        self.value, self.slope = value, slope

    def __add__(self, other):
        other = dual(other)
        return Dual(self.value + other.value, self.slope + other.slope)

    def __sub__(self, other):
        other = dual(other)
        return Dual(self.value - other.value, self.slope - other.slope)

    def __mul__(self, other):
        other = dual(other)
        return Dual(self.value * other.value, self.slope * other.value + self.value * other.slope)

    def __truediv__(self, other):
        other = dual(other)
        quotient = self.value / other.value
        return Dual(quotient, (self.slope - quotient * other.slope) / other.value)

    def sqrt(self):
        """Square root."""
        root = sqrt(self.value)
        return Dual(root, self.slope / (2 * root))

    def relu(self):
        """The larger of zero and the number; slope 0 at 0, as everywhere."""
        return self if self.value > 0 else Dual(0.0)


def dual(number):
    """A plain number as a constant."""
    return number if isinstance(number, Dual) else Dual(number)


def total(terms):
    """The sum of duals."""
    return sum(terms, Dual(0.0))


def columns(rows):
    """Rows to columns."""
    return [list(column) for column in zip(*rows, strict=True)]


def dense(rows, weight, bias):
    """A linear layer, one row a sample."""
    return [[total(dual(w) * x for w, x in zip(ws, row, strict=True)) + b for ws, b in zip(weight, bias, strict=True)]
            for row in rows]  # fmt: skip


def batch_norm(rows, weight, bias, eps):
    """Normalise over the rows, scale, shift, ReLU; one neuron at a time."""
    out = []
    for column, w, b in zip(columns(rows), weight, bias, strict=True):
        mean = total(column) / len(column)
        var = total((v - mean) * (v - mean) for v in column) / len(column)
        out.append([((v - mean) / (var + eps).sqrt() * w + b).relu() for v in column])
    return columns(out)


def values(rows):
    """The numbers of rows of duals."""
    return [[x.value for x in row] for row in rows]


def loss(parameters, batch, eps):
    """Mean squared error of the whole network on one batch, in training mode."""
    hidden = batch
    for k in ("1", "2"):
        linear = [parameters["w" + k][:2], parameters["w" + k][2:]]
        z = dense(hidden, linear, parameters["b" + k])
        hidden = batch_norm(z, parameters["weight" + k], parameters["bias" + k], eps)
    answers = [
        row[0] - target(s) for row, s in zip(dense(hidden, [parameters["w3"]], parameters["b3"]), batch, strict=True)
    ]
    return total(a * a for a in answers) / len(batch)


def gradients(parameters, batch, eps):
    """Of the loss by every parameter, by seeding one derivative at a time."""
    found = {name: [] for name in parameters}
    for name, numbers in parameters.items():
        for i in range(len(numbers)):
            seeded = {**parameters, name: [Dual(v, float(i == j)) for j, v in enumerate(numbers)]}
            found[name].append(loss(seeded, batch, eps).slope)
    return found


def test_first_batch_is_whole_numbers(run: Epoch) -> None:
    """The first batch has mean 15 and -3, standard deviation 4, and running mean 1.5: done in the head."""
    first = run.steps[0]

    assert first.mean == [15.0, -3.0]
    assert first.std == [4.0, 4.0]
    assert first.running_mean == pytest.approx([1.5, -0.3], abs=1e-15)
    assert first.running_var == pytest.approx([2.9, 2.9], abs=1e-15)


def test_each_batch_by_hand(run: Epoch) -> None:
    """Pre-activations, mean, standard deviation, normalised values and output follow from the inputs listed."""
    for step in run.steps:
        z = values(dense(step.inputs, step.linear_weight, step.linear_bias))
        assert step.z == [pytest.approx(row, abs=CLOSE) for row in z]
        for neuron, column in enumerate(columns(z)):
            mean = sum(column) / 5
            var = sum((v - mean) ** 2 for v in column) / 5
            xhat = [(v - mean) / sqrt(var + run.eps) for v in column]

            assert step.mean[neuron] == pytest.approx(mean, abs=CLOSE)
            assert step.std[neuron] == pytest.approx(sqrt(var), abs=CLOSE)
            assert [row[neuron] for row in step.xhat] == pytest.approx(xhat, abs=CLOSE)
            out = [max(0.0, step.weight[neuron] * v + step.bias[neuron]) for v in xhat]
            assert [row[neuron] for row in step.out] == pytest.approx(out, abs=CLOSE)


def test_running_averages_by_hand(run: Epoch) -> None:
    """Each step keeps nine tenths of the running statistics; the variance enters in its unbiased form."""
    mean, var = [0.0, 0.0], [1.0, 1.0]
    for step in run.steps:
        for neuron in (0, 1):
            mean[neuron] += MOMENTUM * (step.mean[neuron] - mean[neuron])
            var[neuron] += MOMENTUM * (step.std[neuron] ** 2 * 5 / 4 - var[neuron])

        assert step.running_mean == pytest.approx(mean, abs=CLOSE)
        assert step.running_var == pytest.approx(var, abs=CLOSE)


def test_the_whole_epoch_in_plain_numbers(run: Epoch) -> None:
    """Losses, gradients and the parameters they lead to are those of a network in plain Python numbers."""
    parameters = {
        "w1": [1.0, 1.0, 1.0, -1.0], "b1": [5.0, -3.0], "weight1": [1.0, 1.0], "bias1": [0.0, 0.0],
        "w2": [1.0, 1.0, -1.0, 1.0], "b2": [0.0, 0.0], "weight2": [1.0, 1.0], "bias2": [0.0, 0.0],
        "w3": [0.5, 0.5], "b3": [0.0],
    }  # fmt: skip
    for step in run.steps:
        gradient = gradients(parameters, step.inputs, run.eps)

        assert step.loss == pytest.approx(loss(parameters, step.inputs, run.eps).value, abs=CLOSE)
        assert [*step.linear_weight[0], *step.linear_weight[1]] == pytest.approx(parameters["w1"], abs=CLOSE)
        assert step.weight == pytest.approx(parameters["weight1"], abs=CLOSE)
        assert step.bias == pytest.approx(parameters["bias1"], abs=CLOSE)
        dw = [*step.linear_weight_grad[0], *step.linear_weight_grad[1]]
        assert dw == pytest.approx(gradient["w1"], abs=CLOSE)
        assert step.linear_bias_grad == pytest.approx(gradient["b1"], abs=CLOSE)
        assert step.weight_grad == pytest.approx(gradient["weight1"], abs=CLOSE)
        assert step.bias_grad == pytest.approx(gradient["bias1"], abs=CLOSE)
        for name, numbers in parameters.items():
            parameters[name] = [v - RATE * g for v, g in zip(numbers, gradient[name], strict=True)]


def test_redundant_bias_has_no_gradient(run: Epoch) -> None:
    """The first layer's own bias never moves, while every other parameter of the layer does."""
    for step in run.steps:
        assert max(map(abs, step.linear_bias_grad)) < 1e-15
        assert step.linear_bias == pytest.approx([5.0, -3.0], abs=1e-14)
        assert min(map(abs, [*step.weight_grad, *step.bias_grad])) > 1e-3  # the least is 0.0038


def test_prediction_by_hand(run: Epoch) -> None:
    """One sample's answer follows from the running statistics alone."""
    x: list[float] = [float(v) for v in ASKED]
    for layer in run.prediction.layers:
        z = values(dense([x], layer.linear_weight, layer.linear_bias))[0]
        parts = zip(z, layer.running_mean, layer.running_var, layer.weight, layer.bias, strict=True)
        x = [max(0.0, w * (v - mean) / sqrt(var + run.eps) + b) for v, mean, var, w, b in parts]

        assert layer.out == pytest.approx(x, abs=CLOSE)
    answer = values(dense([x], [run.prediction.last_weight], [run.prediction.last_bias]))[0][0]
    assert run.prediction.alone == pytest.approx(answer, abs=CLOSE)


def test_prediction_in_company(run: Epoch) -> None:
    """In evaluation mode company does not change an answer; in training mode it does."""
    alone = run.prediction.alone

    assert run.prediction.among == pytest.approx([alone] * 6, rel=1e-14)
    assert run.prediction.among_all == pytest.approx(alone, rel=1e-14)
    assert max(run.prediction.training) - min(run.prediction.training) > 0.1


def test_debiased_average_forgets_its_start(run: Epoch) -> None:
    """The debiased average is the plain one with the share of the initial value taken out."""
    left = (1 - MOMENTUM) ** 6
    last: Step = explain.epoch("debiased").steps[-1]
    plain = run.steps[-1]

    assert last.running_mean == pytest.approx([m / (1 - left) for m in plain.running_mean], abs=CLOSE)
    assert last.running_var == pytest.approx([(v - left) / (1 - left) for v in plain.running_var], abs=CLOSE)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_page_lists_the_numbers(run: Epoch, lang: explain_sections.Lang) -> None:
    """The page shows every number of both layers, loss and gradients to four decimals, in rows of at most 80."""
    page = explain_page.markdown(lang)
    tables = [s.table.splitlines() for s in explain_page.sections(lang) if s.kind != "list"]

    assert max(explain_sections.width(line) for table in tables for line in table) <= 80
    for step in run.steps:
        shown = [*step.mean, *step.std, *step.running_mean, *step.running_var, step.loss, *step.answers]
        shown += [*step.second.mean, *step.second.std, *step.second.running_mean, *step.second.running_var]
        for value in [*shown, *numbers(step.parameters), *numbers(step.gradients)]:
            assert f"{round(value, 4) + 0.0:.4f}" in page
    assert f"{run.prediction.alone:.4f}" in page
    assert "-0.0000" not in page
    assert page.count("W = ") == 5 + 6 * 5 + 4 + 2  # and twice dW


def numbers(tree: object) -> list[float]:
    """All numbers in nested lists and dictionaries."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [x for part in tree for x in numbers(part)] if isinstance(tree, list) else [float(str(tree))]


def test_both_languages_have_the_same_numbers() -> None:
    """Every figure of the English page stands in the Chinese one, in the same order, and no word is left out."""

    def figures(lang: explain_sections.Lang) -> list[str]:
        return re.findall(r"-?\d+\.\d{4}", explain_page.markdown(lang))

    assert len(figures("en")) > 1000
    assert figures("en") == figures("zh")
    assert explain_words.EN.keys() == explain_words.ZH.keys()
    for lang in ("en", "zh"):
        assert len(explain_words.WORDS[lang]["questions"]) == len(explain_words.WORDS[lang]["solutions"]) == 5


def test_twelve_lines_of_torch_agree(run: Epoch, capsys: pytest.CaptureFixture[str]) -> None:
    """The lines on the page, pasted, print the running mean and the prediction of the example."""
    assert len(explain_words.TORCH.splitlines()) == 12
    exec(explain_words.TORCH, {})
    printed = [float(number) for number in re.findall(r"-?\d+\.\d+", capsys.readouterr().out)]

    assert printed == pytest.approx([*run.steps[-1].running_mean, run.prediction.alone], abs=1e-4)


def test_the_backward_step_by_hand(run: Epoch) -> None:
    """The formula on the page gives the gradient of z, and with it those of W and b, for every batch and neuron."""
    for step in run.steps:
        for neuron in (0, 1):
            g = [d[neuron] if out[neuron] > 0 else 0.0 for d, out in zip(step.out_grad, step.out, strict=True)]
            xhat = [row[neuron] for row in step.xhat]
            c1, c2 = sum(g) / 5, sum(a * b for a, b in zip(g, xhat, strict=True)) / 5
            factor = step.weight[neuron] / sqrt(step.std[neuron] ** 2 + run.eps)
            dz = [factor * (a - c1 - x * c2) for a, x in zip(g, xhat, strict=True)]

            assert dz == pytest.approx([row[neuron] for row in step.z_grad], abs=CLOSE)
            assert sum(dz) == pytest.approx(0, abs=CLOSE)
            for i in (0, 1):
                dw = sum(d * sample[i] for d, sample in zip(dz, step.inputs, strict=True))
                assert dw == pytest.approx(step.linear_weight_grad[neuron][i], abs=CLOSE)


def test_training_on_ends_with_the_right_answer() -> None:
    """The sample's answer starts on the wrong side or far off, ends nearer to 1 than to 0, and stays there."""
    after = explain.later([1, 2, 10, 15, 20])

    assert after[0].answer > 1.4
    assert all(0.5 < at.answer < 1 for at in after[2:])
    assert after[-1].loss < after[0].loss / 10


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_page_holds_everything(tmp_path: Path, lang: explain_sections.Lang) -> None:
    """``--html`` writes one page that names its language, fetches nothing and shows every section."""
    path = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["explain", "--lang", lang, "--html", str(path)])
    page = path.read_text("utf-8")

    assert (done.exit_code, done.output) == (0, f"wrote {path}\n")

    assert f'<html lang="{lang}' in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    for section in explain_page.sections(lang):
        assert f"<h2>{html.escape(section.title)}</h2>" in page
    assert page.count("<circle") == 60


def test_a_page_that_cannot_be_written_is_wrong_use(tmp_path: Path) -> None:
    """A folder that is not there is named in one line, with status 2."""
    done = CliRunner().invoke(main, ["explain", "--html", str(tmp_path / "nowhere" / "page.html")])

    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "nowhere" in done.stderr


def test_chinese_lines_fit_the_terminal() -> None:
    """Lines are as wide as asked for, no line begins with a mark, and no character is lost."""
    for section in explain_page.sections("zh"):
        lines = explain_page.wrapped(section.text, 40).splitlines()

        assert max(map(explain_sections.width, lines), default=0) <= 42  # a mark may hang over
        assert not any(line.startswith(("，", "。", "：", "；", "、")) for line in lines)
        assert "".join(lines).replace(" ", "") == section.text.replace(" ", "")
