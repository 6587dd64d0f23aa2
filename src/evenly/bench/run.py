"""From lists of shapes and names of peers to results: judged first, then timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evenly.bench import others, peers, timing
from evenly.bench.judge import Judge
from evenly.bench.shapes import Case

Maker = Callable[[Case], peers.Peer]

PEERS: dict[str, Maker] = {
    "evenly": peers.ours,
    "kernels": peers.KernelPeer,
    "torch": peers.eager,
    "compile": peers.compiled,
    "hugepages": others.huge_pages,
    "jemalloc": others.jemalloc,
    "keras": others.keras,
    "jax": others.jax,
    "onednn": others.onednn,
}


@dataclass
class Measured:
    """One peer on one case.

    Args:
        error: the largest error of output and gradients against float64, as a share of the largest
            value of each; None where the peer could not run.
        error_offset: the same where the input has mean 1e4 and standard deviation 1.
        refused: why there are no times.
        cold: times with inputs rotating over several times the last-level cache.
        warm: times with one input.
    """

    error: float | None = None
    error_offset: float | None = None
    refused: str | None = None
    cold: timing.Times | None = None
    warm: timing.Times | None = None


@dataclass
class Row:
    """All peers on one case, and the copy they are measured by."""

    case: Case
    peers: dict[str, Measured] = field(default_factory=dict)
    copy_cold: timing.Times | None = None
    copy_warm: timing.Times | None = None


def check_peers(names: Sequence[str]) -> list[str]:
    """The peers asked for, evenly first.

    Raises:
        ValueError: a name is unknown.
    """
    for name in names:
        if name not in PEERS:
            raise ValueError(f"unknown peer {name!r}; known are {', '.join(PEERS)}.")
    return ["evenly", *(name for name in dict.fromkeys(names) if name != "evenly")]


def run_case(
    case: Case,
    names: Sequence[str],
    pace: timing.Pace,
    *,
    warm: bool = True,
    makers: dict[str, Maker] = PEERS,
) -> Row:
    """Judge and time peers on one case.

    Args:
        case: what is computed.
        names: the peers.
        pace: how long to measure.
        warm: whether to measure warm, too.
        makers: name → function that makes the peer ready.
    """
    row = Row(case)
    ready: dict[str, peers.Peer] = {}
    judges = [Judge(case)] + ([Judge(case, mean=1e4)] if case.dtype in ("float32", "float64") else [])
    for name in names:
        row.peers[name] = found = Measured()
        try:
            peer = makers[name](case)
            errors = [judge.error(peer.outcome(judge.inputs)) for judge in judges]
        except peers.Unavailable as reason:
            found.refused = str(reason)
            continue
        found.error, found.error_offset = errors[0], errors[1] if len(errors) > 1 else None
        found.refused = judges[0].refusal(errors[0])
        if found.refused is None:
            ready[name] = peer
    for cold in (True, False) if warm else (True,):
        copy, *times = timing.measure(case, list(ready.values()), cold=cold, pace=pace)
        which = "cold" if cold else "warm"
        setattr(row, f"copy_{which}", copy)
        for name, found_times in zip(ready, times, strict=True):
            setattr(row.peers[name], which, found_times)
    return row
