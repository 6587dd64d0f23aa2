"""Hostile and damaged files: refused in one line, in two seconds of the processor and a gigabyte, nothing executed."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from tests.soak import files, hostile

from evenly.tools import checkpoint, opcodes, pickles, rebuild


@pytest.fixture(scope="module")
def reader():
    """A process that reads files within the limits."""
    reader = files.Reader()
    yield reader
    reader.close()


# Not refused: what it tries is ignored, and the tensor beside it is a good one.
READ = {"torch: a setstate on a tensor", "legacy: a setstate on a tensor"}


@pytest.mark.parametrize("large", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_hostile_file_is_refused_in_one_line_within_the_limits(reader, tmp_path, large):
    """Hangs, gigabytes, bytes outside of the file, programs: each file made for one of them is a refusal."""
    path = tmp_path / "model.pt"
    outcomes = {}
    for name, content in hostile.files(large):
        path.write_bytes(content)
        outcomes[name] = reader.try_file(path)

    wrong = {name: o for name, o in outcomes.items() if o.partition(":")[0] != ("read" if name in READ else "refused")}
    assert not wrong
    assert len(outcomes) > (15 if large else 150)


def test_damaged_files_are_read_or_refused():
    """Four hundred files of every format, damaged at random from a fixed seed: no traceback, no hang, no gigabyte."""
    counts = files.run(math.inf, seed=16, most=400, hostile_too=False)

    assert counts.failures == []
    assert counts.tried == 400
    assert counts.refused > 100
    assert counts.read > 10


@pytest.mark.slow
def test_the_limits_can_be_exceeded(tmp_path):
    """A reader that took too long, too much memory, or raised something else would be found."""
    (path := tmp_path / "model.pt").write_bytes(b"")
    kinds = {"hang": "took more than", "memory": "MiB", "raise": "KeyError", "lines": "not one line"}
    broken = files.Reader(broken=True)
    try:
        for kind, said in kinds.items():
            path.write_text(kind)
            outcome = broken.try_file(path)
            assert outcome.startswith("failed")
            assert said in outcome
    finally:
        broken.close()


def test_a_name_of_the_file_is_never_called(tmp_path):
    """`getattr` and `__setstate__` of our own objects are out of a pickle's reach: a name stays a name."""
    marker = tmp_path / "marker"
    names = [
        b"posix\nsystem",
        b"builtins\neval",
        b"torch\nload",
        b"torch.serialization\nload",
        b"evenly.tools.files\nwrite",
    ]
    for name in names:
        argument = f"touch {marker}".encode()
        program = (
            b"\x80\x02}X\x01\x00\x00\x00ac" + name + b"\nX" + len(argument).to_bytes(4, "little") + argument + b"\x85Rs"
        )
        (path := tmp_path / "model.pt").write_bytes(
            hostile.archive(program + b"X\x01\x00\x00\x00w" + hostile.tensor() + b"s.")
        )

        assert list(checkpoint.read(path).tensors) == ["w"]
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_of_pickle_is_read(tmp_path, protocol):
    """What Python itself writes, in each of its six protocols, comes out as it went in, names as stubs."""
    content = {
        "text": "ä\n", "numbers": [0, -1, 2**40, -(2**70), 1.5, True, None], "bytes": b"\x00\xff" * 200,
        "set": {1, 2}, "tuple": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), "long": "x" * 70_000, "inside": {"a": {}},
    }  # fmt: skip
    content["itself"] = content["inside"]
    (path := tmp_path / "p").write_bytes(pickle.dumps(content, protocol))
    with path.open("rb") as file:
        call = rebuild.Rebuild(rebuild.Budget(10_000), lambda data: None)
        found = opcodes.load(pickles.Machine(file, os.path.getsize(path), call, lambda identity: None))

    assert found == content
    assert found["itself"] is found["inside"]


def test_a_large_checkpoint_takes_fewer_steps_than_allowed(tmp_path):
    """Three thousand parameters with Adam's moments are far from the limit."""
    parameters = {f"layer{i}.weight": torch.nn.Parameter(torch.zeros(3)) for i in range(3000)}
    adam = torch.optim.Adam(parameters.values())
    sum(p.sum() for p in parameters.values()).backward()
    adam.step()
    torch.save({"model": parameters, "optimizer": adam.state_dict()}, path := Path(tmp_path, "model.pt"))

    assert len(checkpoint.read(path).tensors) == 3000
