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


@pytest.mark.parametrize("form", SAVERS)
def test_a_file_that_changed_is_not_mended(tmp_path, form):
    """Written anew in place, replaced, appended to, or one bit changed and its time kept: refused, nothing written."""

    def rewrite(path):
        SAVERS[form]({"new": torch.zeros(128), **state}, path)

    def replace(path):
        rewrite(other := path.with_stem("other"))
        os.replace(other, path)

    def grow(path):
        path.write_bytes(path.read_bytes() + b"\0")

    def flip(path):
        data, times = bytearray(path.read_bytes()), path.stat()
        data[-1] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    state = {"a": torch.ones(4)}
    for change in (rewrite, replace, grow, flip):
        SAVERS[form](state, path := _path(tmp_path, form))
        found = checkpoint.read(path)
        change(path)
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(ValueError, match="has changed since it was read"):
            found.write(tmp_path / "out", {"a": torch.zeros(4)})
        assert sorted(os.listdir(tmp_path)) == before


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    """A training run that writes on is noticed."""
    torch.save({"a": torch.ones(4)}, path := tmp_path / "m.pt")
    digest = checkpoint.files.digest
    monkeypatch.setattr(checkpoint.files, "digest", lambda file: (path.write_bytes(b"x"), digest(file))[1])

    with pytest.raises(ValueError, match="it changed while it was read"):
        checkpoint.read(path)


def test_a_full_disk_leaves_no_stump(tmp_path, monkeypatch):
    """Where the mended file has no room, there is none, and an old one of that name stays."""
    torch.save({"a": torch.ones(4)}, path := tmp_path / "m.pt")
    (out := tmp_path / "out.pt").write_text("old")
    found = checkpoint.read(path)

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        found.write(out, {"a": torch.zeros(4)})

    assert out.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["m.pt", "out.pt"]


def test_values_that_the_files_types_cannot_hold_are_refused(tmp_path):
    """Half precision has no 1e6, a whole number no half, and a number for many places no two values."""
    state = {"half": torch.ones(2, dtype=torch.float16), "count": torch.tensor(3), "one": torch.zeros(1).expand(4)}
    torch.save(state, path := tmp_path / "m.pt")
    found = checkpoint.read(path)

    for key, value in {"half": torch.full((2,), 1e6), "count": torch.tensor(0.5), "one": torch.arange(4.0)}.items():
        with pytest.raises(ValueError, match=f"{key} is "):
            found.write(tmp_path / "out.pt", {key: value})
    assert not (tmp_path / "out.pt").exists()


def test_a_damaged_entry_is_refused(tmp_path):
    """A bit that flipped in the numbers is noticed by the archive's checksum, and never gets a true one."""
    torch.save({"a": torch.ones(4000), "b": torch.ones(4)}, path := tmp_path / "m.pt")
    data = bytearray(path.read_bytes())
    data[data.index(torch.ones(100).numpy().tobytes()) + 7] ^= 1
    path.write_bytes(data)

    with pytest.raises(ValueError, match="damaged: its checksum is another"):
        checkpoint.read(path)


def test_archives_without_checksums_are_read_and_mended(tmp_path):
    """torch can be told to make none."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(4)}, path := tmp_path / "m.pt")
    finally:
        torch.serialization.set_crc32_options(before)

    checkpoint.read(path).write(out := tmp_path / "out.pt", {"a": torch.zeros(4)})

    assert torch.load(out)["a"].tolist() == [0] * 4


def test_tensors_of_small_types_are_read(tmp_path):
    """Eight-bit floating point, unsigned and complex numbers are read from safetensors; others are named."""
    kinds = (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64)
    state = {str(kind): torch.ones(3).to(kind) for kind in kinds}
    save_file(state, path := tmp_path / "m.safetensors")
    found = checkpoint.read(path)
    (other := tmp_path / "n.safetensors").write_bytes(path.read_bytes().replace(b'"U16"', b'"X16"'))

    assert {key: t.dtype for key, t in found.tensors.items()} == {str(kind): kind for kind in kinds}
    assert checkpoint.read(other).left_out == ["torch.uint16"]
