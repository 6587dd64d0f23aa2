"""Checkpoints: read without running anything, written with the same keys."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tools import nets

from evenly.tools import checkpoint


class Call:
    """Pickles as the call of any callable."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def _save_legacy(thing, path):
    torch.save(thing, path, _use_new_zipfile_serialization=False)


def _save_safe(thing, path):
    save_file(thing, path, metadata={"format": "pt"})


SAVERS = {"torch": torch.save, "legacy": _save_legacy, "safetensors": _save_safe}


def _load(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def _path(folder, form):
    return folder / ("model.safetensors" if form == "safetensors" else "model.pt")


@pytest.mark.parametrize("form", SAVERS)
def test_the_same_tensors_are_read(tmp_path, form):
    """Each format gives the state_dict that was saved, bit by bit."""
    state = nets.trained("resnet").state_dict()
    path = _path(tmp_path, form)
    SAVERS[form](state, path)

    found = checkpoint.read(path).tensors

    assert set(found) == set(state)
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in state.items())


@pytest.mark.parametrize("form", SAVERS)
def test_write_replaces_values_and_nothing_else(tmp_path, form):
    """The new file loads with new values, same keys and types; the old file and the loaded tensors stay."""
    state = nets.trained("resnet").state_dict()
    path = _path(tmp_path, form)
    SAVERS[form](state, path)
    before = path.read_bytes()
    found = checkpoint.read(path)
    new = torch.randn(8)

    found.write(out := path.with_stem("mended"), {"bn1.running_mean": new, "bn1.num_batches_tracked": torch.tensor(7)})

    loaded = _load(out)
    assert loaded.keys() == _load(path).keys()
    for key, value in loaded.items():
        expected = {"bn1.running_mean": new, "bn1.num_batches_tracked": torch.tensor(7)}.get(key, state[key])
        assert torch.equal(value, expected)
    assert path.read_bytes() == before
    assert torch.equal(found.tensors["bn1.running_mean"], state["bn1.running_mean"])
    assert len(before) == out.stat().st_size


def test_the_mended_archive_has_true_checksums(tmp_path):
    """Python's zipfile, which checks them, finds no bad entry."""
    torch.save(nets.trained("dense").state_dict(), path := tmp_path / "model.pt")
    checkpoint.read(path).write(out := tmp_path / "out.pt", {"2.running_mean": torch.ones(64)})

    with zipfile.ZipFile(out) as file:
        assert file.testzip() is None


def test_tensors_that_share_a_storage(tmp_path):
    """Views of one storage are read as they are, and changing one leaves its neighbour."""
    whole = torch.arange(6.0)
    torch.save({"a": whole[:3], "b": whole[3:], "c": whole.reshape(2, 3).t()}, path := tmp_path / "model.pt")
    found = checkpoint.read(path)

    assert torch.equal(found.tensors["c"], whole.reshape(2, 3).t())
    found.write(out := tmp_path / "out.pt", {"a": torch.full((3,), 9.0)})

    assert torch.load(out)["b"].tolist() == [3, 4, 5]


def test_the_input_is_never_overwritten(tmp_path):
    """The file that was read is refused as output, by whatever name; so are unknown keys and other shapes."""
    torch.save({"a": torch.zeros(3)}, path := tmp_path / "model.pt")
    (tmp_path / "link.pt").symlink_to(path)
    found = checkpoint.read(path)

    for out in (path, tmp_path / "link.pt"):
        with pytest.raises(ValueError, match="another name"):
            found.write(out, {"a": torch.ones(3)})
    with pytest.raises(ValueError, match="no tensor 'b'"):
        found.write(tmp_path / "out.pt", {"b": torch.ones(3)})
    with pytest.raises(ValueError, match="shape"):
        found.write(tmp_path / "out.pt", {"a": torch.ones(4)})


WRAPS = {
    "lightning": ("state_dict", lambda s: {"epoch": 3, "state_dict": s, "optimizer_states": [{"state": {0: s}}]}),
    "timm": ("state_dict", lambda s: {"arch": "x", "state_dict": s, "state_dict_ema": dict(s), "optimizer": dict(s)}),
    "nested": ("model", lambda s: {"train": {"step": torch.ones(1)}, "model": s}),
    "plain": ("", lambda s: s),
}


@pytest.mark.parametrize(("inside", "wrap"), WRAPS.values(), ids=WRAPS)
def test_the_state_dict_is_found_in_its_wrapping(tmp_path, inside, wrap):
    """Lightning's, timm's and hand-made dictionaries: the model's tensors are taken, and it is said from where."""
    state = nets.trained("dense").state_dict()
    torch.save(wrap(state), path := tmp_path / "model.ckpt")

    found = checkpoint.read(path)

    assert found.inside == inside
    assert list(found.tensors) == list(state)


@pytest.mark.parametrize("save", [torch.save, _save_legacy], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_whole_models_are_read_as_tensors(tmp_path, save):
    """A pickled model gives its state_dict, with eps and momentum, and no class of it is made."""
    model = nets.trained("resnet")
    model.layer1[0].bn2.momentum = 0.99
    save({"model": model}, path := tmp_path / "model.pt")

    found = checkpoint.read(path)

    assert list(found.tensors) == list(model.state_dict())
    assert all(torch.equal(v, found.tensors[k]) for k, v in model.state_dict().items())
    assert found.settings["layer1.0.bn2"] == {"eps": 1e-5, "momentum": 0.99}


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_whole_models_are_mended_without_their_classes(tmp_path):
    """A pickled model of a class that we never load gets new numbers, and is the same model otherwise."""
    torch.save(nets.trained("dense"), path := tmp_path / "model.pt")

    checkpoint.read(path).write(out := tmp_path / "out.pt", {"2.running_var": torch.full((64,), 3.0)})

    assert torch.load(out, weights_only=False)[2].running_var.unique().tolist() == [3.0]


def _hostile(marker):
    state = {"weight": torch.ones(3)}
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": {**state, "x": Call(os.system, f"touch {marker}")},
        "eval": {**state, "x": Call(eval, touch)},
        "exec": {"a": {"b": [Call(exec, touch)]}, **state},
        "as a key": {**state, Call(eval, touch): 1},
        "getattr": {**state, "x": Call(getattr, Call(__import__, "os"), "system")},
        "nested": {**state, "x": Call(eval, Call(str, Call(eval, touch)))},
        "map": {**state, "x": Call(list, Call(map, os.system, [f"touch {marker}"]))},
        "inner pickle": {**state, "x": Call(torch.storage._load_from_bytes, pickle.dumps(Call(eval, touch)))},
    }


@pytest.mark.parametrize("save", [torch.save, _save_legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("attack", _hostile(""))
def test_hostile_pickles_execute_nothing(tmp_path, monkeypatch, attack, save):
    """Code in a pickle does not run, and the tensors beside it are read all the same."""
    save(_hostile(marker := tmp_path / "marker")[attack], path := tmp_path / "model.pt")
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("os.system was called"))

    found = checkpoint.read(path)

    assert found.tensors["weight"].tolist() == [1, 1, 1]
    assert not marker.exists()


def test_the_attacks_are_real(tmp_path):
    """torch.load without weights_only runs what the reader must not: the test above can fail."""
    torch.save(_hostile(marker := tmp_path / "marker")["eval"], path := tmp_path / "model.pt")

    torch.load(path, weights_only=False)

    assert marker.exists()


def test_a_pickle_cannot_change_our_functions(tmp_path):
    """BUILD on a function that is allowed, to give it other insides, is refused."""
    program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", program)

    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"PK\x03\x04", pickle.dumps({"weight": 1}), b"\x08\0\0\0\0\0\0\0{broken}", b"\x80\x02" + b"(" * 50],
)
def test_other_files_are_refused_in_words(tmp_path, content):
    """What is no checkpoint is a ValueError that names the file."""
    (path := tmp_path / "model.pt").write_bytes(content)

    with pytest.raises(ValueError, match=r"model\.pt cannot be read as a checkpoint"):
        checkpoint.read(path)


def test_compressed_and_scripted_archives_are_refused(tmp_path):
    """An archive that cannot be replaced in place, and one that is a program, say what to do instead."""
    torch.save({"a": torch.zeros(400)}, path := tmp_path / "model.pt")
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with zipfile.ZipFile(script := tmp_path / "script.pt", "w") as file:
        file.writestr("m/data.pkl", b"")
        file.writestr("m/constants.pkl", b"")

    with pytest.raises(ValueError, match="compressed; save it again"):
        checkpoint.read(packed)
    with pytest.raises(ValueError, match=r"a program; save model\.state_dict"):
        checkpoint.read(script)


def test_damaged_tensors_are_refused(tmp_path):
    """A header that promises more than the bytes hold, and a storage larger than the file, raise."""
    save_file({"a": torch.zeros(4)}, path := tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes().replace(b'"shape":[4]', b'"shape":[9]'))
    with pytest.raises(ValueError, match="does not fit its bytes"):
        checkpoint.read(path)

    stream = io.BytesIO()
    _save_legacy({"a": torch.zeros(4)}, stream)
    (path := tmp_path / "model.pt").write_bytes(stream.getvalue()[:-8])
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.read(path)
