"""Small files made to cost the machine, to be executed, or to be read wrongly: one for each trick known to us."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable

import numpy as np
import torch

_TEXT = b"X\x01\x00\x00\x00a"
_STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu%stQ"
_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
_HEAD = _MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)


def archive(program: bytes, entries: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch.save with this pickle, and one storage of four numbers unless others are given."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        file.writestr("m/data.pkl", program)
        for name, data in ({"data/0": bytes(16)} if entries is None else entries).items():
            file.writestr(f"m/{name}", data)
    return stream.getvalue()


def tensor(
    offset: bytes = b"K\x00", size: bytes = b"(K\x04t", stride: bytes = b"(K\x01t", length: bytes = b"K\x04"
) -> bytes:
    """The call that makes a tensor, by its arguments' opcodes."""
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + _STORAGE % length + offset + size + stride + b"\x89}tR"


def entry(value: bytes) -> bytes:
    """The dictionary of one key."""
    return b"\x80\x02}" + _TEXT + value + b"s."


def _long(number: int) -> bytes:
    data = pickle.encode_long(number)
    return b"\x8a" + bytes([len(data)]) + data


def _doubled(grow: bytes, levels: int = 60, first: bytes = b")") -> bytes:
    """An object that holds one below it twice, and so on: few bytes, 2^levels ways through it."""
    return first + b"q\x00" + b"".join(grow + b"q\x00" for _ in range(levels))


_TUPLES = _doubled(b"h\x00\x86")
_DICTS = _doubled(b"}(" + _TEXT + b"h\x00X\x01\x00\x00\x00bh\x00u" + b"q\x010h\x01", first=b"}").replace(
    b"q\x010h\x01", b""
)
_STUB = b"cx\ny\n)\x81"
_MODULES = _doubled(
    _STUB + b"}X\x08\x00\x00\x00_modules}(" + _TEXT + b"h\x00X\x01\x00\x00\x00bh\x00usb", first=_STUB + b"}b"
)
_CALLS = b"h\x02h\x01\x85R0" * 10_000 + b"."
_LIST = b"](" + b"N" * 100_000 + b"eq\x01"


def programs() -> dict[str, bytes]:
    """Pickles."""
    many = 1_500_000
    return {
        "memo index": b"\x80\x02Nr\xff\xff\xff\xff}.",
        "memo index as text": b"\x80\x02Np99999999999999\n}.",
        "memo index below zero": b"\x80\x02Np-5\ng-5\n.",
        "tuples doubled": entry(_TUPLES),
        "tuples doubled, a key": b"\x80\x02}" + _TUPLES + b"Ns.",
        "tuples doubled, in a set": b"\x80\x04\x8f(" + _TUPLES + b"\x90.",
        "tuples doubled, frozen": b"\x80\x04(" + _TUPLES + b"\x91.",
        "tuples doubled, in a call": b"\x80\x02c__builtin__\nset\n(" + b"](" + _TUPLES + b"etR.",
        "tuples doubled, an identity": b"\x80\x02" + _TUPLES + b"Q.",
        "tuples doubled, a state": b"\x80\x02" + _STUB + _TUPLES + b"b.",
        "dictionaries doubled": entry(_DICTS),
        "modules doubled": entry(_MODULES),
        "a module inside itself": b"\x80\x02" + _STUB + b"q\x05}X\x08\x00\x00\x00_modules}" + _TEXT + b"h\x05ssb.",
        "a list inside itself": b"\x80\x02]q\x05h\x05a.",
        "globals": b"\x80\x02" + b"".join(b"ca%d\nb\n0" % i for i in range(500_000)) + b"}.",
        "one global": b"\x80\x02" + b"ca\nb\n)R0" * (many // 4) + b"}.",
        "dictionaries": b"\x80\x02" + b"}" * many + b".",
        "sets": b"\x80\x04" + b"\x8f" * many + b".",
        "marks": b"\x80\x02" + b"(" * many + b".",
        "steps": b"\x80\x02" + b"N0" * 3_000_000 + b"}.",
        "deep lists": b"\x80\x02" + b"]" * (many // 2) + b"a" * (many // 2 - 1) + b".",
        "deep tuples": b"\x80\x02)" + b"\x85" * many + b".",
        "deep dictionaries": b"\x80\x02" + (b"}" + _TEXT) * (many // 4) + b"N" + b"s" * (many // 4) + b".",
        "a huge number": b"\x80\x02\x8b" + struct.pack("<i", 4_000_000) + b"\x7f" * 4_000_000 + b".",
        "a huge number as text": b"L" + b"9" * 4_000_000 + b"L\n.",
        "a huge number as a key": b"\x80\x02}" + _long(1 << 1500) + b"Ns.",
        "numbers with one hash": b"\x80\x02}("
        + b"".join(_long(i * (2**61 - 1)) + b"N" for i in range(1, 150_000))
        + b"u.",
        "a list in many calls": b"\x80\x02" + _LIST + b"c__builtin__\nset\nq\x020" + _CALLS,
        "a list in many dictionaries": b"\x80\x02" + _LIST + b"ccollections\nOrderedDict\nq\x020" + _CALLS,
        "a list in many shapes": b"\x80\x02" + _LIST + b"ctorch\nSize\nq\x020" + _CALLS,
        "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b"x.",
        "long bytes, possible": b"\x80\x04\x8e" + struct.pack("<Q", 2**34) + b"x.",
        "a long text": b"\x80\x02X\xff\xff\xff\xffx.",
        "a text below zero": b"\x80\x02T\xff\xff\xff\xffx.",
        "a name without end": b"\x80\x02c" + b"a" * 100_000,
        "a setstate on a tensor": entry(tensor() + b"}X\x0c\x00\x00\x00__setstate__N\x73b"),
        "a state for a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}" + _TEXT + b"Nsb}.",
        "extensions": b"\x80\x02\x82\x01.",
        "buffers": b"\x80\x05\x97.",
        "pops of nothing": b"\x80\x020.",
        "a mark as a value": b"\x80\x02}" + _TEXT + b"(s.",
    }  # fmt: skip


def tensors() -> dict[str, bytes]:
    """Tensors that do not lie in their bytes."""
    huge = _long(2**61)
    wrong = {
        "offset below zero": tensor(offset=b"J\xfc\xff\xff\xff"),
        "offset beyond": tensor(offset=b"K\x01"),
        "offset huge": tensor(offset=huge),
        "offset a text": tensor(offset=_TEXT),
        "offset a truth": tensor(offset=b"\x88"),
        "size below zero": tensor(size=b"(J\xff\xff\xff\xfft"),
        "size huge": tensor(size=b"(" + huge + b"t", stride=b"(K\x00t"),
        "size huge beside zero": tensor(size=b"(K\x00" + huge + huge + b"t", stride=b"(K\x00K\x00K\x00t"),
        "size a fraction": tensor(size=b"(G" + struct.pack(">d", 2.0) + b"t"),
        "stride below zero": tensor(stride=b"(J\xff\xff\xff\xfft"),
        "stride beyond": tensor(stride=b"(K\x02t"),
        "axes": tensor(size=b"(" + b"K\x01" * 100_000 + b"t", stride=b"(" + b"K\x01" * 100_000 + b"t"),
        "more axes than strides": tensor(size=b"(K\x02K\x02t"),
        "a storage that is not there": tensor().replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009"),
        "a storage elsewhere": tensor().replace(b"X\x01\x00\x00\x000", b"X\x09\x00\x00\x00../../etc"),
    }
    return {name: entry(program) for name, program in wrong.items()}


def archives() -> dict[str, bytes]:
    """Zip archives."""
    plain = archive(entry(tensor()))
    return {
        "overlapping entries": _overlapping(),
        "compressed": archive(entry(tensor()), compression=zipfile.ZIP_DEFLATED),
        "a damaged storage": plain.replace(bytes(16), bytes(15) + b"x"),
        "its directory cut off": plain[:-40],
        "a directory beyond": plain[:-6] + b"\xff\xff\xff\x7f" + plain[-2:],
    }


def large_archives() -> dict[str, bytes]:
    """Zip archives of many entries, or entries of many bytes."""
    length = b"J\x00\x00\x04\x00"
    view = tensor(size=b"(" + length + b"t", length=length) + b"s"
    names = [b"l%d.running_mean" % i for i in range(20_000)]
    views = b"".join(b"X" + struct.pack("<I", len(name)) + name + view for name in names)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for i in range(150_000):
            file.writestr(zipfile.ZipInfo(f"m/data/{i}"), b"")
    return {
        "many entries": stream.getvalue(),
        "a compressed bomb": archive(entry(tensor()), {"data/0": bytes(200_000_000)}, zipfile.ZIP_DEFLATED),
        "views of one storage": archive(b"\x80\x02}" + views + b".", {"data/0": bytes(4 << 18)}),
    }


def _overlapping() -> bytes:
    """Many names, one run of bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("m/data.pkl", entry(tensor()))
        file.writestr("m/data/0", bytes(1 << 20))
        first = file.getinfo("m/data/0")
        for i in range(1, 2000):
            again = zipfile.ZipInfo(f"m/data/{i}")
            again.header_offset, again.CRC = first.header_offset, first.CRC
            again.file_size = again.compress_size = first.file_size
            file.filelist.append(again)
    return stream.getvalue()


def _header(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _one(**changes: object) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}}).encode()


def safetensors() -> dict[str, bytes]:
    """Headers."""
    two = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    return {
        "length": _header(_one(), bytes(16), 2**63),
        "length beyond": _header(_one(), bytes(16), 1000),
        "deep": _header(b'{"a":' + b"[" * 1_000_000, bytes(16)),
        "deep objects": _header(b'{"a":' * 200_000, bytes(16)),
        "a key twice": _header(b'{"a":{"dtype":"F32","dtype":"F16","shape":[4],"data_offsets":[0,16]}}', bytes(16)),
        "offsets below zero": _header(_one(data_offsets=[-16, 0]), bytes(16)),
        "offsets turned": _header(_one(data_offsets=[16, 0]), bytes(16)),
        "offsets beyond": _header(_one(data_offsets=[16, 32]), bytes(16)),
        "overlapping": _header(json.dumps({"a": two, "b": two}).encode(), bytes(16)),
        "shape": _header(_one(shape=[9]), bytes(16)),
        "shape below zero": _header(_one(shape=[-2, -2]), bytes(16)),
        "shape huge": _header(_one(shape=[10**4000]), bytes(16)),
        "shape huge beside zero": _header(_one(shape=[0, 2**61, 2**61], data_offsets=[0, 0]), bytes(16)),
        "axes": _header(_one(shape=[1] * 300_000), bytes(16)),
        "an entry that is a list": _header(b'{"a":[]}', bytes(16)),
        "a header that is a list": _header(b"{}".replace(b"{}", b"{\n") + b"}", b"")[:9] + b"[]",
        "many keys": _header(b"{" + b",".join(b'"%d":{}' % i for i in range(1_000_000)) + b"}"),
        "a huge header": _header(b'{"a":"' + b"x" * 20_000_000 + b'"}'),
        "a huge number": _header(b'{"a":' + b"9" * 1_000_000 + b"}"),
    }


def _npz(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return stream.getvalue()


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    """A npy file with this header."""
    form = "<H" if version == 1 else "<I"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(form, len(header)) + header.encode() + data


def numpys() -> dict[str, bytes]:
    """Numpy's archives."""
    shape = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"
    objects = io.BytesIO()
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return {
        "a bomb": _npz({"x.npy": npy(shape % "(75000000,)", bytes(300_000_000))}),
        "a shape": _npz({"x.npy": npy(shape % "(9999999999,)", bytes(16))}),
        "a shape below zero": _npz({"x.npy": npy(shape % "(-4,)", bytes(16))}),
        "a shape without end": _npz({"x.npy": npy(shape % f"({'9' * 9000},)", bytes(16))}),
        "a deep header": _npz({"x.npy": npy("(" * 9000, bytes(16))}),
        "a huge header": _npz({"x.npy": npy(shape % ("(1," * 1_000_000), version=2)}),
        "a header with a call": _npz({"x.npy": npy("__import__('os').getpid()", bytes(16))}),
        "objects": _npz({"x.npy": objects.getvalue()}),
        "records": _npz({"x.npy": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,)}", bytes(16))}),
        "no array": _npz({"x.npy": b"hello"}),
    }


def legacies() -> dict[str, bytes]:
    """What torch before 1.6 wrote."""

    def saved(content: bytes, keys: list[object], data: bytes) -> bytes:
        return _HEAD + content + pickle.dumps(keys, 2) + data

    whole = entry(tensor())
    many = b"\x80\x02}" + b"".join(
        _TEXT + tensor(length=b"J\x00\x00\x01\x00").replace(b"X\x01\x00\x00\x000", b"X\x05\x00\x00\x00%05d" % i) + b"s"
        for i in range(2_000)
    ) + b"."  # fmt: skip
    nested = pickle.dumps(_Nested(3), 2)
    return {
        "a storage too long": saved(entry(tensor(length=_long(2**40))), ["0"], bytes(24)),
        "storages too long together": saved(many, [], bytes(300_000)),
        "a storage without bytes": saved(whole, ["0"], struct.pack("<q", 4) + bytes(8)),
        "a storage of another length": saved(whole, ["0"], struct.pack("<q", 3) + bytes(16)),
        "a storage not listed": saved(whole, [], bytes(24)),
        "a storage listed twice": saved(whole, ["0", "0"], bytes(48)),
        "keys that are lists": saved(whole, [["0"]], bytes(24)),
        "big-endian": _MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": False}, 2) + whole,
        "no content": _HEAD,
        "texts in texts": nested,
    }


class _Nested:
    """A storage in a text in a text."""

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        inner = _Nested(self.levels - 1) if self.levels else 1
        return torch.storage._load_from_bytes, (_MAGIC + pickle.dumps(inner, 2),)


LARGE = 200_000  # bytes of what is not tried in every form


def files(large: bool | None = None) -> Iterable[tuple[str, bytes]]:
    """Every hostile file, by a name that says what it tries; only the large, or only the small ones."""
    for name, program in {**programs(), **tensors()}.items():
        if large in (None, len(program) > LARGE):
            yield f"torch: {name}", archive(program)
        if large is not True and len(program) <= LARGE:
            yield f"legacy: {name}", _HEAD + program + pickle.dumps(["0"], 2) + struct.pack("<q", 4) + bytes(16)
            yield f"pickle: {name}", program
    kinds = {None: (archives, safetensors, numpys, legacies, large_archives), True: (large_archives,)}
    for kind in kinds.get(large, (archives, safetensors, numpys, legacies)):
        for name, content in kind().items():
            yield f"{kind.__name__}: {name}", content
