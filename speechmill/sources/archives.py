"""Tar archives: read once as a stream in bounded memory. Nothing is unpacked, so member names never become paths.

Members before a damage count: `TarStream.problem` then says why the archive could not be read to its end.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from speechmill.errors import ClipError, SourceError
from speechmill.sources.boundary import is_machine_error
from speechmill.utils.text import plain

HEADER_BYTES = 1 << 20  # limit of the extended header (name, attributes) of a member, against memory exhaustion
EXPANSION = 200  # largest ratio of unpacked to packed bytes; speech stays below 20
SMALL = 1 << 30  # unpacked bytes that are allowed whatever the ratio
TAIL = 1024  # a tar archive ends with so many zero bytes
OPENERS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
HEAD = 512  # bytes of a member that is not wanted
READS_AFTER_END = 16  # tarfile itself needs two


class _BoundedInfo(tarfile.TarInfo):
    """A member with a limit on its extended headers; tarfile itself would read any size into memory."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(tar)
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined] # tarfile takes it for the end
            raise tarfile.ReadError(f"the header at byte {tar.offset} is damaged: {error}") from None

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.size < 0:
            raise tarfile.ReadError(f"a member claims {self.size} bytes")
        extended = self.type in (*tarfile.GNU_TYPES, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if extended and self.type != tarfile.GNUTYPE_SPARSE and self.size > HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header claims {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


class _LimitedStream(io.RawIOBase):
    """An unpacked stream that knows where its last byte is that is not zero.

    It raises ReadError after `most` bytes, and if it is read on after its end: tarfile would skip a member that claims
    2^62 bytes block by block.
    """

    def __init__(self, stream: IO[bytes], most: int):
        self.stream, self.most, self.total = stream, most, 0
        self.ended = self.last = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        if content := len(data.rstrip(b"\0")):
            self.last = self.total + content
        self.total += len(data)
        if self.total > self.most:
            raise tarfile.ReadError(f"it unpacks to more than {self.most} bytes, {EXPANSION} times its size")
        self.ended = 0 if data else self.ended + 1
        if self.ended > READS_AFTER_END:
            raise tarfile.ReadError("it ends inside a member")
        return data


class TarStream:
    """The regular files of an archive (.tar, also with gzip, bzip2 or xz), in its order.

    Yields (name, bytes), or (name, ClipError) for a member that is too large. After the iteration, `problem` says why
    the archive could not be read to its end; it is None if it was read completely.

    Args:
        path: the archive.
        max_bytes: a larger member is a ClipError (too_large) and is not read into memory.
        passed_over: receives the number of skipped members, by description: links and devices, names that lead out of
            the archive, repeated names (the first member of a name counts), and what macOS adds (`._NAME`).
        table_bytes: the limit for members called *.tsv, instead of `max_bytes`.
        wanted: called with name and size. Only `HEAD` bytes are read of a member for which it is false, and nothing
            (the data is empty) if it is None. A plain .tar file is not read there at all.

    Raises:
        SourceError: the archive cannot be opened.
        OSError: the disk fails while it is read.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        passed_over: Counter[str] | None = None,
        table_bytes: int | None = None,
        wanted: Callable[[str, int], bool | None] | None = None,
    ):
        self.path, self.max_bytes, self.wanted = path, max_bytes, wanted
        self.table_bytes = max_bytes if table_bytes is None else table_bytes
        self.passed_over: Counter[str] = Counter() if passed_over is None else passed_over
        self.problem: str | None = None
        self.members = 0

    def __iter__(self) -> Iterator[tuple[str, bytes | ClipError]]:
        try:
            packed = open(self.path, "rb")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be read: {error.strerror}") from error
        with packed:
            try:
                yield from self._read(packed)
            except Exception as error:  # of tarfile, zlib, lzma, bz2, or of a header that none of them expects
                if is_machine_error(error):
                    raise
                self.problem = f"the archive is damaged or truncated after {self.members} members: {plain(error)}"

    def _read(self, packed: IO[bytes]) -> Iterator[tuple[str, bytes | ClipError]]:
        size = packed.seek(0, io.SEEK_END)
        packed.seek(0)
        start = packed.read(6)
        packed.seek(0)
        opener = next((opener for magic, opener in OPENERS if start.startswith(magic)), None)
        if opener is None and self.wanted is not None:
            with tarfile.open(fileobj=packed, mode="r:", tarinfo=_BoundedInfo) as tar:
                yield from self._members(tar, size)
                packed.seek(tar.offset)
            opened, before = packed, tar.offset
        else:
            opened, before = cast(IO[bytes], opener(packed) if opener else packed), 0
        stream = _LimitedStream(opened, max(EXPANSION * size, SMALL) if opener else size)
        if not before:
            with tarfile.open(fileobj=cast(Any, stream), mode="r|", tarinfo=_BoundedInfo) as tar:
                yield from self._members(tar, None if opener else size)
        while stream.read(1 << 20):  # gzip verifies its checksum only at the end of the file
            pass
        end = tar.offset - before
        if stream.total - end < TAIL:
            self.problem = f"the archive is truncated after {self.members} members: its end mark is missing"
        elif stream.last > end:
            self.problem = (
                f"after {self.members} members and the end mark, more data follows at byte {tar.offset}: archives that "
                "were joined with cat; join them with tar --concatenate"
            )

    def _members(self, tar: tarfile.TarFile, size: int | None) -> Iterator[tuple[str, bytes | ClipError]]:
        seen: set[int] = set()
        for member in tar:
            tar.members = []  # type: ignore[attr-defined] # or tarfile keeps every member in memory
            name = self._name(member, seen)
            most = self.table_bytes if name and name.endswith(".tsv") else self.max_bytes
            if name is not None and member.size > most:
                self.members += 1
                yield name, ClipError("too_large", f"{member.size} bytes; enhance.max_bytes allows {most}")
            elif name is not None:
                wanted = True if self.wanted is None else self.wanted(name, member.size)
                data = b""
                if wanted is not None:
                    file = tar.extractfile(member)
                    assert file is not None
                    data = file.read(-1 if wanted else HEAD)
                self.members += 1
                yield name, data
            if size is not None and member.size > size - member.offset_data:
                raise tarfile.ReadError(f"a member claims {member.size} bytes; the archive has {size}")

    def _name(self, member: tarfile.TarInfo, seen: set[int]) -> str | None:
        """The member's name without a leading ./; None if the member is skipped."""
        if member.isdir():
            return None
        name = member.name.removeprefix("./")
        if not member.isreg() or member.issparse():
            self.passed_over["members that are links, devices or other special files"] += 1
        elif name.startswith("/") or ".." in name.split("/") or "\0" in name or not _is_text(name):
            self.passed_over["members with a name that is absolute, contains .. or is not UTF-8"] += 1
        elif name.rpartition("/")[2].startswith("._"):
            self.passed_over["members that macOS adds (._NAME)"] += 1
        elif hash(name) in seen:
            self.passed_over["members with a repeated name"] += 1
        else:
            seen.add(hash(name))
            return name
        return None


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
