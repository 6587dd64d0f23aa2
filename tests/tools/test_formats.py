"""What people hand over: read, or told in one line what it is and what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from evenly.tools import checkpoint
from evenly.tools.groups import sets
from evenly.tools.xray import xray


def _state():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model(torch.randn(8, 3))
    return model.state_dict()


def _saved(thing):
    torch.save(thing, stream := io.BytesIO())
    return stream.getvalue()


def _zip(entries):
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return stream.getvalue()


def _tar(data):
    with tarfile.open(fileobj=(stream := io.BytesIO()), mode="w") as file:
        file.addfile(info := tarfile.TarInfo("model.pth"), io.BytesIO(data))
        assert info.size == 0
    return stream.getvalue()


def _scripted():
    torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3)), stream := io.BytesIO())
    return stream.getvalue()


def _exported():
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.zeros(2, 3),)), stream := io.BytesIO())
    return stream.getvalue()


REFUSED = {
    "empty.pt": (lambda: b"", "empty; download or save it again"),
    "page.pt": (lambda: b"<!DOCTYPE html><html>not found</html>", "a web page"),
    "page2.pth": (lambda: b"\n\n  <html><body>", "a web page"),
    "denied.bin": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied', "a web page"),
    "answer.pt": (lambda: b'{"error": "not found"}', "JSON; give the file with the tensors"),
    "lfs.pt": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 3\n", "git lfs pull"),
    "lfs.safetensors": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 3\n", "git lfs pull"),
    "text.pt": (lambda: b"Accuracy: 93.1\nLoss: 0.2\n", "a text"),
    "model.h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5 file"),
    "model.keras": (lambda: _zip({"config.json": "{}", "model.weights.h5": ""}), "a Keras model"),
    "model.onnx": (lambda: b"\x08\x08\x12\x07pytorch" + bytes(50), "an ONNX graph"),
    "onnx-by-its-bytes": (lambda: b"\x08\x08\x12\x07pytorch" + bytes(50), "an ONNX graph"),
    "frozen.pb": (lambda: b"\x0a\x10" + bytes(50), "a TensorFlow graph"),
    "model.tflite": (lambda: b"\x1c\0\0\0TFL3" + bytes(50), "a TensorFlow Lite model"),
    "m.ckpt.data-00000-of-00001": (lambda: bytes(100), "a part of a TensorFlow checkpoint"),
    "flax.msgpack": (lambda: b"\x82\xa1a" + bytes(50), "a Flax file"),
    "m.gguf": (lambda: b"GGUF" + bytes(50), "a GGUF file"),
    "m.pth.gz": (lambda: gzip.compress(_saved(_state())), "packed with gzip; unpack it"),
    "m.pth.bz2": (lambda: bz2.compress(_saved(_state())), "packed with bzip2; unpack it"),
    "m.pth.xz": (lambda: lzma.compress(_saved(_state())), "packed with xz; unpack it"),
    "m.tar": (lambda: _tar(b""), "a tar archive; unpack it"),
    "m.zip": (lambda: _zip({"a/model.pth": _saved(_state())}), "holds a/model.pth; unpack it"),
    "photos.zip": (lambda: _zip({"a.jpg": b""}), "a zip archive without tensors"),
    "script.pt": (_scripted, "a TorchScript or torch.export archive, a program; save model.state_dict()"),
    "program.pt2": (_exported, "a TorchScript or torch.export archive, a program; save model.state_dict()"),
    "cut.pth": (lambda: _saved(_state())[:1500], "it was cut off: download or save it again"),
    "cut.safetensors": (lambda: save(_state())[:-10], "it was cut off; download or save it again"),
    "list.pt": (lambda: _saved(list(_state().values())), "no tensors with names"),
    "number.pt": (lambda: _saved(3), "no tensors with names"),
    "one.npy": (lambda: b"\x93NUMPY\x01\x00" + bytes(120), "one numpy array without a name"),
    "picture.pt": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(50), "a picture"),
    "noise.pt": (lambda: bytes(range(255, 100, -1)) * 3, "no pickle"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_checkpoint_is_told(tmp_path, name):
    """One line that names the file, says what it is and what to do."""
    make, said = REFUSED[name]
    (path := tmp_path / name).write_bytes(make())

    with pytest.raises(ValueError, match="cannot be read as a checkpoint") as caught:
        checkpoint.read(path)

    assert said in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_are_told(tmp_path):
    """A distributed checkpoint, sharded files, TensorFlow's, an unpacked archive: which file to give."""
    kinds = {
        "dcp": ([".metadata", "__0_0.distcp"], "dcp_to_torch"),
        "hf": (["model.safetensors.index.json", "model-1.safetensors"], "hf/model.safetensors.index.json"),
        "tf": (["saved_model.pb", "variables"], "a TensorFlow model"),
        "unpacked": (["data.pkl", "version"], "an unpacked file of torch.save"),
        "one": (["pytorch_model.bin"], "one/pytorch_model.bin"),
        "none": ([], "it is a folder; give a file"),
    }
    for kind, (names, said) in kinds.items():
        (tmp_path / kind).mkdir()
        for name in names:
            (tmp_path / kind / name).write_bytes(b"")
        with pytest.raises(ValueError, match=said):
            checkpoint.read(tmp_path / kind)


def test_what_is_no_file_is_not_opened(tmp_path):
    """A pipe would wait for ever, and /dev/zero has no end."""
    os.mkfifo(tmp_path / "pipe")

    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="it is no file"):
            checkpoint.read(path)


def _arrays():
    return {key: value.numpy() for key, value in _state().items()}


READ = {
    "w.npz": lambda state, path: np.savez(path, **_plain(state)),
    "packed.npz": lambda state, path: np.savez_compressed(path, **_plain(state)),
    "t.pkl": lambda state, path: path.write_bytes(pickle.dumps(state)),
    **{f"np{p}.pkl": lambda state, path, p=p: path.write_bytes(pickle.dumps(_plain(state), p)) for p in range(6)},
    "arrays.pt": lambda state, path: torch.save(_plain(state), path),
    "list.pt": lambda state, path: torch.save([{"epoch": 1}, state], path),
    "models.pt": lambda state, path: torch.save({"models": (state, 3)}, path),
    "columns.npz": lambda state, path: np.savez(
        path, **{k: np.asarray(v, order="F") for k, v in _plain(state).items()}
    ),
}


def _plain(state):
    return {key: value.numpy() for key, value in state.items()}


@pytest.mark.parametrize("name", READ)
def test_other_ways_to_keep_tensors_are_read(tmp_path, name):
    """Numpy's archives, pickled arrays of every protocol, lists: the numbers that were saved."""
    READ[name](state := _state(), path := tmp_path / name)

    found = checkpoint.read(path).tensors

    assert list(found) == list(state)
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in state.items())


def test_numpys_archive_is_mended_and_others_say_why_not(tmp_path):
    """An uncompressed npz gets new numbers in place; a compressed one and a pickle are refused."""
    new = {"1.running_mean": torch.full((4,), 7.0)}
    for name in ("w.npz", "packed.npz", "t.pkl"):
        READ[name](state := _state(), path := tmp_path / name)
        found = checkpoint.read(path)
        if name == "w.npz":
            found.write(out := tmp_path / "out.npz", new)
            with np.load(out) as file, zipfile.ZipFile(out) as entries:
                assert file["1.running_mean"].tolist() == [7] * 4
                assert file["2.weight"].tolist() == state["2.weight"].tolist()
                assert entries.testzip() is None
        else:
            with pytest.raises(ValueError, match="mended"):
                found.write(tmp_path / "no", new)
    assert not (tmp_path / "no").exists()


def test_a_sharded_checkpoint_is_read_by_its_index(tmp_path):
    """All parts together; the index may not lead out of its folder, to another index, or to what is missing."""
    state = _state()
    keys = list(state)
    for part in (0, 1):
        save_file({k: state[k] for k in keys[part::2]}, tmp_path / f"model-{part}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {k: f"model-{i % 2}.safetensors" for i, k in enumerate(keys)}}))

    found = checkpoint.read(index)

    assert found.form == "safetensors, sharded"
    for name in (index.name, "model-0.safetensors", "model-1.safetensors"):
        with pytest.raises(ValueError, match="is a file that is read"):
            xray(index).to_json(tmp_path / name)
    assert set(found.tensors) == set(state)
    assert [(s.prefix, s.count) for s in sets(found)] == [("", 1)]
    with pytest.raises(ValueError, match="and not mended"):
        found.write(tmp_path / "out", {})
    for name in ("../model-0.safetensors", "/etc/passwd", "a\\b", "", index.name, "missing.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises((ValueError, FileNotFoundError)):
            checkpoint.read(index)


def test_every_set_of_norms_is_named_in_the_order_of_the_file(tmp_path):
    """Model, averaged copy, two networks in one dictionary, lists, an optimizer's: each with its count."""
    state = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2)).state_dict()
    small = nn.BatchNorm1d(3).state_dict()

    def under(prefix, tensors):
        return {f"{prefix}.{key}": value for key, value in tensors.items()}

    content = {
        "state_dict": state,
        "state_dict_ema": dict(state),
        "optimizer": {"shadow": dict(small)},
        "twin": under("model", state) | under("model_ema", state),
        "moco": under("module.encoder_q", state) | under("module.encoder_k", state) | {"module.queue": torch.zeros(3)},
        "gan": under("G", state) | under("D", small),
        "stages": under("layer1", state) | under("layer2", state),
        "heads": [small, dict(small)],
        "none": {"w": torch.zeros(2)},
    }
    torch.save(content, path := tmp_path / "m.pt")
    expected = [
        ("state_dict", "", 2), ("state_dict_ema", "", 2), ("optimizer.shadow", "", 1), ("twin", "model.", 2),
        ("twin", "model_ema.", 2), ("moco", "module.encoder_q.", 2), ("moco", "module.encoder_k.", 2), ("gan", "G.", 2),
        ("gan", "D.", 1), ("stages", "", 4), ("heads.0", "", 1), ("heads.1", "", 1),
    ]  # fmt: skip

    for _ in range(2):
        assert [(s.inside, s.prefix, s.count) for s in sets(checkpoint.read(path))] == expected
    assert checkpoint.read(path, inside="heads.1").inside == "heads.1"
    with pytest.raises(ValueError, match=r"no set 'ema'; it has 'state_dict', 'state_dict_ema'"):
        checkpoint.read(path, inside="ema")


def test_a_zipped_folder_of_a_checkpoint_says_how_to_save_it(tmp_path):
    """A file of torch.save that was unpacked and packed again is compressed: it is told so."""
    (tmp_path / "m.pt").write_bytes(_saved(_state()))
    shutil.unpack_archive(tmp_path / "m.pt", tmp_path / "folder", "zip")
    shutil.make_archive(str(tmp_path / "again"), "zip", tmp_path / "folder")

    with pytest.raises(ValueError, match="compressed; save it again"):
        checkpoint.read(tmp_path / "again.zip")
