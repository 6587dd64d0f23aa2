"""First, do no harm: what is never written, and what is written after it proved better."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.tools import nets
from tests.tools.situations import Case as Mine
from tests.tools.situations import accuracy, data, net
from torch import nn
from torch.nn import functional as F

import evenly
from evenly.tools import checkpoint, fit
from evenly.tools.diagnose import diagnose
from evenly.tools.parts import split
from evenly.tools.scores import _interval as interval
from evenly.tools.xray import xray


def _reset(place=4):
    model = net()
    model[place].reset_running_stats()
    return model


def test_without_labels_nothing_is_written_unless_forced(tmp_path):
    """The forms' disagreement is a warning; fix refuses in one line, and force writes."""
    diagnosis = diagnose(_reset(), [x for x, _ in data()])

    assert diagnosis.best is None
    with pytest.raises(ValueError, match="cannot say which form is better"):
        diagnosis.fix(tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []
    diagnosis.fix(tmp_path / "a.pt", force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("size", [1, 3, 64])
def test_what_is_written_is_measured_on_all_the_data(size, tmp_path):
    """Batches of one and of 64 give a file of the same statistics: samples are counted, not batches."""
    model = _reset()
    expected = copy.deepcopy(model)

    diagnosis = diagnose(model, data(size=size))
    trial = diagnosis.fix(tmp_path / "a.pt")
    evenly.recalibrate(expected, data(size=size))

    assert diagnosis.mended.samples == 512
    assert diagnosis.mended.better.low > 0
    assert str(diagnosis.mended).count("before") == 1
    written = torch.load(tmp_path / "a.pt")
    for key in trial.changes:
        if "running" in key and trial.name == "recalibrate all":
            torch.testing.assert_close(written[key], expected.state_dict()[key])


def test_the_parts_are_disjoint_and_do_not_follow_the_order():
    """Every batch is in one part; alternating batches are in all three; always alike."""
    batches = [torch.full((4, 1), float(i)) for i in range(20)]

    parts = split(batches)

    values = [[int(b[0, 0]) for b in part] for part in parts]
    assert sorted(v for part in values for v in part) == list(range(20))
    assert all({v % 2 for v in part} == {0, 1} for part in values)
    assert [[int(b[0, 0]) for b in part] for part in split(batches)] == values


def test_the_interval_is_honest():
    """Differences that are but noise lie above 0 in about one of forty draws, and small samples decide nothing."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(-1, 2, (60,), generator=generator).double() * 100 for _ in range(400)]

    above = sum(interval(d, torch.ones(60), 1.0, 100.0).low > 0 for d in draws) / 400

    assert above < 0.05
    assert interval(torch.full((3,), 100.0).double(), torch.ones(3), 1.0, 100.0).low < 0
    assert interval(torch.full((60,), 100.0).double(), torch.ones(60), 1.0, 100.0).low > 50


def test_a_group_that_would_lose_stops_the_file():
    """Batches of two kinds in turn: said, and what is written spoils neither."""
    model = net()
    both = [b for x, y in data() for b in ((x, y), (1 - x, y))]

    diagnosis = diagnose(model, both)

    assert "two-groups" in {f.rule for f in diagnosis.findings}
    if diagnosis.best is not None:
        before = [accuracy(Mine(model, part)) for part in (both[0::2], both[1::2])]
        model.load_state_dict({**model.state_dict(), **diagnosis.fix("/dev/null").changes})
        assert all(accuracy(Mine(model, p)) >= b - 1 for p, b in zip((both[0::2], both[1::2]), before, strict=True))


def test_missing_counters_are_not_invented(tmp_path):
    """A file without num_batches_tracked is mended without them."""
    state = {k: v for k, v in _reset().state_dict().items() if "tracked" not in k}
    torch.save(state, path := tmp_path / "old.pt")
    model = net()
    loaded = fit.load(model, checkpoint.read(path))
    diagnosis = diagnose(model, data())
    diagnosis.checkpoint, diagnosis.keys = loaded.file, loaded.keys

    diagnosis.fix(tmp_path / "new.pt")

    assert torch.load(tmp_path / "new.pt").keys() == state.keys()
    assert diagnosis.mended.after > diagnosis.mended.before


def test_of_twins_the_first_is_used_and_the_other_offered(tmp_path):
    """Two encoders that fit equally: the file's first, always; --inside takes the other; a wrong name lists both."""
    good, bad = net(), _reset()
    both = {
        f"module.{n}.{k}": v for n, m in (("encoder_q", good), ("encoder_k", bad)) for k, v in m.state_dict().items()
    }
    torch.save({"state_dict": both}, path := tmp_path / "moco.pth")
    model = net()

    first = fit.load(model, checkpoint.read(path))
    other = fit.load(model, checkpoint.read(path), "encoder_k")

    assert first.keys["1.weight"] == "module.encoder_q.1.weight"
    assert "encoder_k" in first.said
    assert other.keys["1.weight"] == "module.encoder_k.1.weight"
    assert not model[4].running_mean.any()
    with pytest.raises(ValueError, match=r"encoder_q.*encoder_k"):
        fit.load(model, checkpoint.read(path), "nothing")


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrapped_models_take_plain_files_and_the_other_way_round(wrap, tmp_path):
    """module. and _orig_mod. are no part of a name."""
    plain, wrapped = net(), wrap(net())
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    torch.save(wrapped.state_dict(), tmp_path / "wrapped.pt")

    assert len(fit.load(wrapped, checkpoint.read(tmp_path / "plain.pt")).keys) == len(plain.state_dict())
    assert len(fit.load(plain, checkpoint.read(tmp_path / "wrapped.pt")).keys) == len(plain.state_dict())


def test_other_names_are_shown_side_by_side(tmp_path):
    """A file with gamma and beta is refused with both lists and the likely renaming."""
    names = {"weight": "gamma", "bias": "beta"}
    state = {}
    for key, value in net().state_dict().items():
        head, _, last = key.rpartition(".")
        state[f"{head}.{names.get(last, last)}" if head in ("1", "4", "7") else key] = value
    torch.save(state, tmp_path / "tf.pt")

    with pytest.raises(ValueError, match=r"it has instead 1.gamma.*likely gamma is weight, beta is bias"):
        fit.load(net(), checkpoint.read(tmp_path / "tf.pt"))


NAMES = {"state_dict_ema": "state_dict_ema", "critic": "critic", "target": "net.target", "list": "1"}


@pytest.mark.parametrize("content", ["state_dict_ema", "critic", "target", "list"])
def test_every_set_of_a_file_is_examined_and_named(content, tmp_path):
    """A broken copy beside good weights is found, wherever it is, with the name of its set."""
    good, bad = net().state_dict(), net().state_dict()
    bad["4.running_var"] = torch.full_like(bad["4.running_var"], torch.nan)
    sets = {"state_dict_ema": {"state_dict": good, "state_dict_ema": bad}, "critic": {"actor": good, "critic": bad},
            "target": {"net": {"online": good, "target": bad}}, "list": [good, bad]}  # fmt: skip
    torch.save(sets[content], path := tmp_path / "m.pt")

    diagnosis = xray(path)

    assert diagnosis.worst == "error"
    assert diagnosis.findings[0].evidence.startswith(f"in {NAMES[content]}: ")
    assert len(diagnosis.examined) == 2


class _Keyed(nn.Module):
    """Takes keywords, and returns logits and loss in a mapping."""

    def __init__(self):
        super().__init__()
        self.net = _reset()

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        return {"loss": None if labels is None else F.cross_entropy(logits, labels), "logits": logits}


FORMS = {
    "numbers from 0": (lambda y: y, "accuracy"),
    "numbers from 1": (lambda y: y + 1, "from 1 to 10"),
    "int32": (lambda y: y.int(), "accuracy"),
    "(N, 1)": (lambda y: y[:, None], "accuracy"),
    "one-hot": (lambda y: F.one_hot(y, 10), "one-hot"),
    "one-hot, float": (lambda y: F.one_hot(y, 10).float(), "one-hot"),
    "ignored": (lambda y: torch.where(torch.arange(len(y)) % 5 == 0, -100, y), "-100"),
    "ignored, 255": (lambda y: torch.where(torch.arange(len(y)) % 5 == 0, 255, y), "255"),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_every_usual_form(form):
    """Scored by the labels, and it is said how."""
    change, said = FORMS[form]

    gap = diagnose(_reset(), [(x, change(y)) for x, y in data()]).gap

    assert gap.score == "accuracy"
    assert said in gap.said
    assert gap.training > 95 > gap.evaluation


def test_calls_as_people_make_them():
    """Keywords with labels in them, a tuple in a tuple, more inputs than one; else one line that says what to give."""
    x = data()
    keyed = diagnose(_Keyed(), [{"pixel_values": a, "labels": b} for a, b in x])

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = _reset()

        def forward(self, a, b):
            return self.net(a + b)

    nested = diagnose(Two(), [((a, torch.zeros(1)), b) for a, b in x])
    flat = diagnose(Two(), [(a, torch.zeros(len(a), 1, 1, 1), b) for a, b in x])

    assert [d.gap.score for d in (keyed, nested, flat)] == ["accuracy"] * 3
    assert "called as model(*batch[0])" in nested.examined
    with pytest.raises(ValueError, match="forward="):
        diagnose(_reset(), [((a * 255).byte(), b) for a, b in x])


def test_labels_that_are_not_used_are_explained():
    """What does not fit is said, and the score is agreement."""
    gap = diagnose(_reset(), [(x, y + 40) for x, y in data()]).gap

    assert not gap.judges
    assert "labels run from 40 to 49" in gap.said


def test_numbers_are_scored_by_squared_error():
    """Float labels: mean squared error, said to be used."""
    model = nn.Sequential(_reset(), nn.Linear(10, 1))

    assert diagnose(model, [(x, torch.randn(len(x), 1)) for x, _ in data()]).gap.score == "mean squared error"


HEALTHY = {
    "labels": lambda x, y: (x, y),
    "no labels": lambda x, y: x,
    "augmented": lambda x, y: (x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) > 0.1), y),
}


@pytest.mark.parametrize("kind", [*nets.MAKERS, "frozen", "half"])
@pytest.mark.parametrize("labels", HEALTHY)
@pytest.mark.parametrize("size", [4, 64])
def test_healthy_networks_yield_no_error_and_no_file(kind, labels, size):
    """Whatever make, batch and labels: no error, and nothing to write."""
    model = nets.trained("dense" if kind in ("frozen", "half") else kind)
    if kind == "frozen":
        evenly.freeze(model)
    dtype = torch.bfloat16 if kind == "half" else torch.float32
    x, y = nets.digits()
    pairs = zip(x[:256].split(size), y[:256].split(size), strict=True)
    batches = [HEALTHY[labels](a.to(dtype), b) for a, b in pairs]

    diagnosis = diagnose(model.to(dtype), batches)

    assert diagnosis.worst != "error", diagnosis.table()
    assert diagnosis.best is None, diagnosis.table()
