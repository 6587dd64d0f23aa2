"""Zip archives as torch.save writes them: where an entry's bytes lie, and its checksum."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

_LOCAL, _CENTRAL = 30, 46  # bytes of the fixed part of the two headers
_DESCRIPTOR = b"PK\x07\x08"


def stored(file: zipfile.ZipFile, name: str) -> tuple[bytes, int]:
    """An entry's bytes and where in the file they start.

    Raises:
        ValueError: the entry is compressed, so that it cannot be replaced in place.
    """
    info = file.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("the archive is compressed; save it again with torch.save.")
    assert file.fp is not None
    file.fp.seek(info.header_offset)
    start = _start(file.fp.read(_LOCAL), info.header_offset)
    file.fp.seek(start)
    return file.fp.read(info.file_size), start


def mend_checksums(content: bytearray, original: Path) -> None:
    """Make the checksums of ``content``, a zip archive laid out as ``original``, true again."""
    with zipfile.ZipFile(original) as file:
        central = file.start_dir
        for info in file.filelist:  # in the order of the central directory
            start = _start(content[info.header_offset : info.header_offset + _LOCAL], info.header_offset)
            stop = start + info.compress_size
            before = struct.unpack_from("<I", content, central + 16)[0]
            crc = zlib.crc32(content[start:stop]) if info.compress_type == zipfile.ZIP_STORED else before
            struct.pack_into("<I", content, central + 16, crc)
            if not info.flag_bits & 8:
                struct.pack_into("<I", content, info.header_offset + 14, crc)
            else:  # the checksum follows the data, with or without a signature
                at = stop + 4 if content[stop : stop + 4] == _DESCRIPTOR else stop
                struct.pack_into("<I", content, at, crc)
            central += _CENTRAL + sum(struct.unpack_from("<HHH", content, central + 28))


def _start(header: bytes | bytearray, at: int) -> int:
    """Where an entry's bytes start: behind its header, name and extra field."""
    name, extra = struct.unpack_from("<HH", header, 26)
    return int(at + _LOCAL + name + extra)
