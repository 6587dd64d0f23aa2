"""A wrong kernel gets no time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evenly.bench import peers, run, timing
from evenly.bench.judge import Inputs, Judge, Outcome, make_affine, make_inputs
from evenly.bench.shapes import Case

CASES = [
    Case("batch", (4, 6, 5, 5)),
    Case("batch", (4, 6, 5, 5), residual=True, layout="last"),
    Case("batch", (16, 6), activation="relu6"),
    Case("batch", (2, 6, 3, 3, 3), activation="leaky_relu"),
    Case("instance", (3, 6, 5, 5)),
    Case("group", (3, 6, 5, 5), activation="silu", groups=2),
    Case("layer", (7, 12), activation=None),
    Case("rms", (7, 12), activation="gelu"),
]


def faulty(case: Case, fault: str) -> peers.Peer:
    """torch's result with one fault planted."""
    right = peers.eager(case)

    class Faulty(peers.TorchPeer):
        def outcome(self, inputs: Inputs) -> Outcome:
            found = right.outcome(inputs)
            value = getattr(found, fault).clone()
            value.view(-1)[0] += 0.01 * value.abs().max()
            return found._replace(**{fault: value})

    return Faulty(case, lambda x, residual: x, [])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.norm} {case.label}")
@pytest.mark.parametrize("peer", ["evenly", "kernels", "torch"])
def test_right_results_pass(case: Case, peer: str) -> None:
    """evenly, its kernels and torch agree with float64 to float32's rounding, on every kind of norm."""
    judge = Judge(case)
    if peer == "kernels" and case.norm != "batch":
        with pytest.raises(peers.Unavailable, match="batch norm only"):
            run.PEERS[peer](case)
        return
    error = judge.error(run.PEERS[peer](case).outcome(judge.inputs))
    assert 0 < error < 1e-5
    assert judge.refusal(error) is None


@pytest.mark.parametrize("fault", ["y", "dx", "dweight", "dbias", "dresidual"])
def test_one_wrong_number_anywhere_is_refused(fault: str) -> None:
    """One element off by a hundredth of the largest, in any of the results, and the peer gets no time."""
    case = Case("batch", (4, 6, 5, 5), residual=True)
    makers: dict[str, run.Maker] = {"good": peers.eager, "bad": lambda case: faulty(case, fault)}
    row = run.run_case(case, ["good", "bad"], timing.Pace(1, 1e-4), makers=makers)

    assert row.peers["bad"].refused is not None
    assert "differs from float64 by 1.0e-02" in row.peers["bad"].refused
    assert row.peers["bad"].cold is None
    assert row.peers["bad"].warm is None
    assert row.peers["good"].refused is None
    assert row.peers["good"].cold is not None


def test_nan_counts_as_infinite() -> None:
    """A NaN is an error without bound, never a comparison that happens to be false."""
    case = Case("batch", (4, 6, 5, 5))
    judge = Judge(case)
    outcome = peers.eager(case).outcome(judge.inputs)
    outcome.dx[0, 0, 0, 0] = torch.nan
    assert judge.error(outcome) == float("inf")
    assert judge.refusal(float("inf")) is not None


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_of_a_large_tensor_the_first_and_last_are_compared(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only some channels or samples are compared, a fault in the last of them is found."""
    monkeypatch.setattr("evenly.bench.judge._CHECKED", 100)
    case = Case(norm, (40, 30), activation=None)  # type: ignore[arg-type]
    judge = Judge(case)
    outcome = peers.eager(case).outcome(judge.inputs)
    assert judge.error(outcome) < 1e-5
    outcome.y[-1, -1] += 1
    assert judge.error(outcome) > 0.1


def test_a_kink_within_rounding_is_not_held_against_anyone() -> None:
    """Where the activation's input is within rounding of its kink, the gradient that comes back is 0."""
    case = Case("batch", (64, 8, 8, 8), activation="relu6")
    judge = Judge(case)
    weight, bias = make_affine(case)
    x = make_inputs(case, seed=1).x
    z = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True)
    near = (z.abs() < 5e-5) | ((z - 6).abs() < 5e-5)
    assert near.any()
    assert not judge.inputs.dy[near].any()
    assert (judge.inputs.dy != 0).double().mean() > 0.99


def test_the_offset_judge_sees_what_cancellation_does() -> None:
    """E[x²] - E[x]² passes at mean 0 and is far off at mean 1e4, where two passes are not."""
    case = Case("batch", (32, 4, 8, 8), activation=None)
    weight, bias = (t.requires_grad_() for t in make_affine(case) if t is not None)

    def careless(x: Tensor, residual: Tensor | None) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        var = (x * x).mean((0, 2, 3), keepdim=True) - mean * mean
        return (x - mean) * torch.rsqrt(var.abs() + 1e-5) * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)

    peer = peers.TorchPeer(case, careless, [weight, bias])
    plain, offset = Judge(case), Judge(case, mean=1e4)
    assert plain.error(peer.outcome(plain.inputs)) < 1e-4
    assert offset.error(peer.outcome(offset.inputs)) > 0.1
    assert offset.error(peers.eager(case).outcome(offset.inputs)) < 1e-2


def test_inputs_are_the_same_in_every_process() -> None:
    """A seed means one set of numbers, in the case's type and layout."""
    case = Case("batch", (2, 3, 4, 4), residual=True, dtype="bfloat16", layout="last")
    one, two = make_inputs(case, 5), make_inputs(case, 5)
    assert one.residual is not None
    assert torch.equal(one.x, two.x)
    assert not torch.equal(one.x, make_inputs(case, 6).x)
    assert one.x.dtype == torch.bfloat16
    assert one.x.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(one.x, one.residual)
