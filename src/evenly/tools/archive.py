"""Zip archives as torch.save and numpy.savez write them: where an entry's bytes lie, and its checksum."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import BinaryIO

_LOCAL, _CENTRAL = 30, 46  # bytes of the fixed part of the two headers
_DESCRIPTOR = b"PK\x07\x08"
MOST_ENTRIES = 100_000
UNPACKED, UNPACKED_TIMES = 64 << 20, 16  # bytes that compressed entries may unfold to, and for each of the file's


class Archive:
    """The entries of a zip archive, none of them over another.

    Args:
        file: open, and kept open by whoever opened it.

    Raises:
        ValueError: its end is missing, two entries share a name or bytes, or there are too many.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        try:
            self._zip = zipfile.ZipFile(file)
        except zipfile.BadZipFile:
            raise ValueError(
                "it is no whole zip archive; if it was one, it was cut off: download or save it again"
            ) from None
        listed = self._zip.filelist
        if len(listed) > MOST_ENTRIES:
            raise ValueError(f"the archive has {len(listed):,} entries; {MOST_ENTRIES:,} are read at most.")
        self.entries = {info.filename: info for info in listed}
        if len(self.entries) < len(listed):
            raise ValueError("two entries of the archive have the same name.")
        self._starts = [*sorted(info.header_offset for info in listed), self._zip.start_dir]
        file.seek(0, io.SEEK_END)
        self.room = UNPACKED + UNPACKED_TIMES * file.tell()  # for what compressed entries unfold to
        ends = 0
        for info in sorted(listed, key=lambda info: info.header_offset):
            if info.header_offset < ends:
                raise ValueError("entries of the archive overlap.")
            ends = info.header_offset + _LOCAL + info.compress_size
        if ends > self._zip.start_dir:
            raise ValueError("an entry of the archive is longer than the archive.")

    def stored(self, name: str) -> tuple[bytearray, int]:
        """An entry's bytes and where in the file they start.

        Raises:
            ValueError: there is no such entry, it is compressed or damaged.
        """
        info = self._entry(name)
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError("the archive is compressed; save it again with torch.save.")
        self._file.seek(info.header_offset)
        start = _start(self._file.read(_LOCAL), info.header_offset)
        if start + info.file_size > self._starts[bisect_right(self._starts, info.header_offset)]:
            raise ValueError(f"the entry {name!r} reaches into the next one.")
        self._file.seek(start)
        data = bytearray(info.file_size)
        # torch leaves 0 where it was told to make no checksums.
        if self._file.readinto(data) != len(data) or info.CRC not in (0, zlib.crc32(data)):  # type: ignore[attr-defined]
            raise ValueError(f"the entry {name!r} is damaged: its checksum is another.")
        return data, start

    def unpacked(self, name: str) -> bytearray:
        """A compressed entry's bytes.

        Raises:
            ValueError: it unfolds to more than it says, or with the others to more than there is room for.
        """
        info = self._entry(name)
        self._take(info.file_size)
        with self._zip.open(info) as stream:
            data = bytearray(stream.read(info.file_size))
            if len(data) != info.file_size or stream.read(1):
                raise ValueError(f"the entry {name!r} unfolds to another size than it says.")
        return data

    def check_unpacked(self) -> None:
        """Refuse an archive whose compressed entries unfold to too much, for whoever reads it by other means.

        Raises:
            ValueError: they do.
        """
        self._take(sum(info.file_size for info in self.entries.values() if info.compress_type))

    def _take(self, size: int) -> None:
        self.room -= size
        if self.room < 0:
            raise ValueError(
                f"its compressed arrays unfold to more than {UNPACKED_TIMES} times the file and "
                f"{UNPACKED >> 20} MiB; save them with numpy.savez."
            )

    def _entry(self, name: str) -> zipfile.ZipInfo:
        info = self.entries.get(name)
        if info is None:
            raise ValueError(f"the archive has no entry {name!r}.")
        if info.flag_bits & 1:
            raise ValueError("the archive is encrypted.")
        return info


def mend_checksums(file: BinaryIO, changed: Iterable[int]) -> None:
    """Make the checksums of the entries that hold the ``changed`` places true again, in a file open for both."""
    places = sorted(changed)
    with zipfile.ZipFile(file) as archive:
        listed, central = archive.filelist, archive.start_dir  # in the order of the central directory
        for info in listed:
            file.seek(info.header_offset)
            start = _start(file.read(_LOCAL), info.header_offset)
            touched = bisect_left(places, start) < bisect_left(places, start + info.compress_size)
            if touched and info.CRC:
                file.seek(start)
                _write_checksum(file, info, central, start, zlib.crc32(file.read(info.compress_size)))
            file.seek(central + 28)
            central += _CENTRAL + sum(struct.unpack("<HHH", file.read(6)))


def _write_checksum(file: BinaryIO, info: zipfile.ZipInfo, central: int, start: int, crc: int) -> None:
    """Into the central directory, and before the entry's data or behind it, with or without a signature."""
    behind = start + info.compress_size
    file.seek(behind)
    behind += 4 * (file.read(4) == _DESCRIPTOR)
    for at in (central + 16, behind if info.flag_bits & 8 else info.header_offset + 14):
        file.seek(at)
        file.write(struct.pack("<I", crc))


def _start(header: bytes, at: int) -> int:
    """Where an entry's bytes start: behind its header, name and extra field."""
    if header[:4] != b"PK\x03\x04" or len(header) < _LOCAL:
        raise ValueError("an entry of the archive is not where its directory says.")
    name, extra = struct.unpack_from("<HH", header, 26)
    return int(at + _LOCAL + name + extra)
