"""What a file is that cannot be read as a checkpoint, told from its first bytes and its name, and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

HEAD = 512  # bytes that are looked at
_SAVE = "save model.state_dict() with torch.save"
_UNPACK = "unpack it and give the file inside"
_STARTS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file (Keras .h5, MATLAB); load it in Keras, and " + _SAVE,
    b"\x1f\x8b": f"packed with gzip; {_UNPACK}",
    b"BZh": f"packed with bzip2; {_UNPACK}",
    b"\xfd7zXZ": f"packed with xz; {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"packed with zstd; {_UNPACK}",
    b"7z\xbc\xaf": f"a 7z archive; {_UNPACK}",
    b"Rar!": f"a RAR archive; {_UNPACK}",
    b"version https://git-lfs": "a Git LFS pointer, not the file; run git lfs pull",
    b"GGUF": "a GGUF file; give the checkpoint that it was converted from",
    b"%PDF": "a PDF document; download the file itself",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"PAR1": "a Parquet table",
    b"SQLite format 3": "an SQLite database",
    b"RIFF": "a sound or a picture",
}
_SUFFIXES = {
    ".onnx": "an ONNX graph; give the checkpoint that it was exported from",
    ".pb": "a TensorFlow graph; give a checkpoint of PyTorch",
    ".tflite": "a TensorFlow Lite model; give the checkpoint that it was converted from",
    ".msgpack": "a Flax file; give a checkpoint of PyTorch",
    ".index": "the index of a TensorFlow checkpoint; give a checkpoint of PyTorch",
    ".mlmodel": "a Core ML model; give the checkpoint that it was converted from",
}


def told(head: bytes, path: Path) -> str | None:
    """What a file is that starts like this, and what to do; None where that is not known."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "it is empty; download or save it again"
    for magic, text in _STARTS.items():
        if head.startswith(magic):
            return f"it is {text}"
    if head[257:262] == b"ustar":
        return f"it is a tar archive; {_UNPACK}"
    if head[4:8] == b"TFL3":
        return f"it is {_SUFFIXES['.tflite']}"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")) or b"<html" in start:
        return "it is a web page, as a download that needs a login or failed leaves it; download the file itself"
    if path.suffix in _SUFFIXES:
        return f"it is {_SUFFIXES[path.suffix]}"
    if ".data-0" in path.name:
        return "it is a part of a TensorFlow checkpoint; give a checkpoint of PyTorch"
    if _is_onnx(head):
        return f"it is {_SUFFIXES['.onnx']}"
    if start.startswith((b"{", b"[")):
        return "it is JSON; give the file with the tensors"
    if _is_text(head):
        return "it is a text; download or save the checkpoint again"
    return None


def _is_onnx(head: bytes) -> bool:
    """A protocol buffer with ONNX's first fields: a version below 32, then the producer's name."""
    return len(head) > 4 and head[0] == 8 and head[1] < 32 and head[2] in (0x12, 0x3A)


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8", "strict" if len(head) < HEAD else "ignore")
    except UnicodeDecodeError:
        return False
    return "\n" in text and all(sign.isprintable() or sign in "\t\r\n" for sign in text)


def told_of_archive(names: Iterable[str]) -> str:
    """What a zip archive without ``data.pkl`` and without numpy's arrays is, from its entries."""
    found = list(names)
    last = {name.rsplit("/", 1)[-1] for name in found}
    inner = sorted(n for n in found if n.endswith((".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".pth.tar", ".h5")))
    if "constants.pkl" in last or "model.json" in last or "archive_format" in last:
        return "it is a TorchScript or torch.export archive, a program; save model.state_dict() instead"
    if "model.weights.h5" in last:
        return f"it is a Keras model; load it in Keras, and {_SAVE}"
    if inner:
        return f"it is a zip archive that holds {inner[0]}; {_UNPACK}"
    if "[Content_Types].xml" in last:
        return "it is an office document"
    return f"it is a zip archive without tensors; {_SAVE}"


def told_of_folder(path: Path) -> str:
    """What a folder is, and which file in it to give."""
    names = sorted(entry.name for entry in path.iterdir())
    index = next((name for name in names if name.endswith(".index.json")), None)
    inner = [name for name in names if name.endswith((".safetensors", ".pt", ".pth", ".bin", ".ckpt"))]
    if index is not None:
        return f"it is a folder; give the index in it, {path / index}"
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        return (
            "it is a distributed checkpoint; make one file of it with "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} FILE.pt"
        )
    if "saved_model.pb" in names:
        return f"it is a TensorFlow model; load it in Keras, and {_SAVE}"
    if {"data.pkl", "version"} <= set(names):
        return "it is an unpacked file of torch.save; give the file itself"
    if inner:
        return f"it is a folder; give the file in it, {path / inner[0]}"
    return "it is a folder; give a file"


def shards(text: bytes) -> list[str] | None:
    """The files of a sharded checkpoint's index, in the order of their names; None for other JSON.

    Raises:
        ValueError: a name leads out of the index's folder.
    """
    try:
        index = json.loads(text)
        weights = index["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    names = sorted({name for name in weights if isinstance(name, str)})
    for name in names:
        if not name or Path(name).name != name or "\\" in name:
            raise ValueError(f"its index names {name!r}, which is not in the same folder.")
    return names
