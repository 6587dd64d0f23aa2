"""What an experiment is: settings to run, a measurement of each, a rule, and charts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from evenly.lab.data import Dataset
from evenly.lab.judge import Interval, Unit, Verdict
from evenly.lab.setting import Setting
from evenly.tools.names import markup

if TYPE_CHECKING:
    from evenly.lab.plots import Chart

Values = dict[str, Any]
OWN_NETWORK = (
    "The network of {network}, with its norms and with its norms taken out; batches of {batch}, {steps} steps, "
    "learning rate {rate}, initial deviation {init} (None: as it comes). {seeds} seeds."
)


@dataclass(frozen=True)
class Cell:
    """The unit of work: one setting with one seed. Deterministic, so it is run once."""

    experiment: str
    setting: Setting
    seed: int


@dataclass(frozen=True)
class Result:
    """A finished cell and what was measured in it (numbers, and lists of numbers)."""

    setting: Setting
    seed: int
    values: Values


@dataclass(frozen=True)
class Results(Sequence[Result]):
    """The finished cells of one experiment, in the order of their settings and seeds.

    Example:
        >>> from evenly.lab.setting import Setting
        >>> runs = Results([Result(Setting(norm=n), 0, {"accuracy": a}) for n, a in [("none", 0.1), ("batch", 0.9)]])
        >>> runs.where(norm="batch").of("accuracy")
        [0.9]
    """

    results: list[Result]

    def __getitem__(self, index: Any) -> Any:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def where(self, *tests: Callable[[Result], bool], **wanted: Any) -> Results:
        """Those whose setting has these fields, and that pass the tests."""
        return Results([
            r
            for r in self.results
            if all(getattr(r.setting, name) == value for name, value in wanted.items()) and all(t(r) for t in tests)
        ])  # fmt: skip

    def of(self, name: str) -> list[Any]:
        """One measured value of each."""
        return [r.values[name] for r in self.results]

    def distinct(self, name: str) -> list[Any]:
        """The values that a field of the setting takes, in their order of appearance."""
        return list(dict.fromkeys(getattr(r.setting, name) for r in self.results))

    def split(self, key: Callable[[Result], str]) -> dict[str, Results]:
        """The results grouped by what ``key`` says of each, in their order of appearance."""
        parts: dict[str, list[Result]] = {}
        for result in self.results:
            parts.setdefault(key(result), []).append(result)
        return {name: Results(found) for name, found in parts.items()}

    def by_seed(self) -> list[Results]:
        """One `Results` per seed."""
        return [Results([r for r in self.results if r.seed == seed]) for seed in sorted({r.seed for r in self.results})]

    def interval(self, figure: Callable[[Results], float], unit: Unit = "number") -> Interval:
        """The interval of a figure that is taken seed by seed, so that pairs stay paired."""
        return Interval.of([figure(runs) for runs in self.by_seed()], unit)

    def rows(self, *names: str) -> list[dict[str, Any]]:
        """One flat record per result for charts: the setting, the seed, and the named values."""
        return [
            {**r.setting.as_dict(), "seed": r.seed, **{name: r.values[name] for name in names}}
            for r in self.results
        ]  # fmt: skip

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("setting", "seed", "values"))
        lines = [
            f"<tr><td>{markup(differences(r.setting))}</td><td>{r.seed}</td><td>{_brief(r.values)}</td></tr>"
            for r in self.results[:50]
        ]
        return f"<table><tr>{head}</tr>{''.join(lines)}</table><p>{len(self.results)} cells</p>"


@dataclass(frozen=True)
class Experiment:
    """One question, and everything that answers it.

    Args:
        name: its name on the command line.
        question: what is asked.
        how: how it is run; ``{field}`` stands for the values that the setting's field takes.
        settings: those of the quick form, or (``True``) of the full form.
        measure: trains one setting with one seed and returns what was measured.
        judge: the verdicts on its claims.
        charts: what was seen.
        seeds: how many in the quick and in the full form.
        own: whether it can be asked of the user's own network.
        pictures: whether it needs data of shape (N, H, W) or (N, C, H, W).
    """

    name: str
    question: str
    how: str
    settings: Callable[[bool], list[Setting]]
    measure: Callable[[Setting, int, Dataset], Values]
    judge: Callable[[Results], list[Verdict]]
    charts: Callable[[Results], list[Chart]]
    seeds: tuple[int, int] = field(default=(5, 10))
    own: bool = False
    pictures: bool = False

    def told(self, results: Results) -> str:
        """`how`, with the numbers of the run in place of the fields."""
        values = {f.name: _list(results.distinct(f.name)) for f in fields(Setting)}
        own = any(":" in network for network in results.distinct("network"))
        return (OWN_NETWORK if own else self.how).format(seeds=len(results.by_seed()), **values)


def _list(values: list[Any]) -> str:
    numbers = all(isinstance(v, int | float) for v in values)
    if numbers and len(values) > 4:
        return f"{min(values):g} to {max(values):g} ({len(values)} values)"
    return ", ".join(f"{v:g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else str(v) for v in values)


def differences(setting: Setting) -> str:
    """The fields in which ``setting`` differs from the default: ``norm=batch rate=1``."""
    default = Setting().as_dict()
    return " ".join(f"{name}={value}" for name, value in setting.as_dict().items() if value != default[name])


def _brief(values: Values) -> str:
    return ", ".join(f"{k}={v:.4g}" for k, v in values.items() if isinstance(v, int | float))
