"""Tar archives read once, as a stream, in bounded memory, and never unpacked: their names do not become paths.

What can be read counts, also of an archive that is cut short or damaged: `problem` then says where it ends.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from speechmill.errors import ClipError, SourceError

HEADER_BYTES = 1 << 20  # of names and attributes of one member; more is an attack on memory
EXPANSION = 200  # times its size an archive may unpack to: speech does not reach 20
SMALL = 1 << 30  # bytes that any archive may unpack to
TAIL = 1024  # zero bytes that end a tar archive
OPENERS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, gzip.BadGzipFile)


class _BoundedInfo(tarfile.TarInfo):
    """A member whose extended headers are bounded: tarfile would read any size into memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        extended = self.type in (*tarfile.GNU_TYPES, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if extended and self.type != tarfile.GNUTYPE_SPARSE and self.size > HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header claims {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


class _Counted(io.RawIOBase):
    """The unpacked stream, with its last bytes kept, and stopped where it grows beyond all measure."""

    def __init__(self, stream: IO[bytes], most: int):
        self.stream, self.most, self.total, self.tail = stream, most, 0, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.total += len(data)
        if self.total > self.most:
            raise tarfile.ReadError(f"it unpacks to more than {self.most} bytes, {EXPANSION} times its size")
        self.tail = (self.tail + data[-TAIL:])[-TAIL:]
        return data


class TarStream:
    """Regular files of an archive (.tar, also with gzip, bzip2 or xz), in its order: (name, bytes or why not).

    After the iteration `problem` says why the archive could not be read to its end (None: it was), and `passed_over`
    counts members that are no regular files or whose names lead out of the archive. A name that comes again is
    passed over, too: the first one counts.

    Args:
        max_bytes: a larger member is a ClipError (too_large) and not read into memory.
        table_bytes: the same for members called *.tsv.
    """

    def __init__(
        self, path: Path, max_bytes: int, passed_over: Counter[str] | None = None, table_bytes: int | None = None
    ):
        self.path, self.max_bytes = path, max_bytes
        self.table_bytes = max_bytes if table_bytes is None else table_bytes
        self.passed_over: Counter[str] = Counter() if passed_over is None else passed_over
        self.problem: str | None = None
        self.members = 0

    def __iter__(self) -> Iterator[tuple[str, bytes | ClipError]]:
        seen: set[int] = set()
        try:
            packed = open(self.path, "rb")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be read: {error.strerror}") from error
        with packed:
            size = packed.seek(0, io.SEEK_END)
            packed.seek(0)
            start = packed.read(6)
            packed.seek(0)
            opener = next((opener for magic, opener in OPENERS if start.startswith(magic)), None)
            unpacked = cast(IO[bytes], opener(packed) if opener else packed)
            stream = _Counted(unpacked, max(EXPANSION * size, SMALL) if opener else size)
            try:
                with tarfile.open(fileobj=cast(Any, stream), mode="r|", tarinfo=_BoundedInfo) as tar:
                    for member in tar:
                        tar.members = []  # type: ignore[attr-defined] # a stream never goes back; keep no list
                        name = self._name(member, seen)
                        if name is None:
                            continue
                        most = self.table_bytes if name.endswith(".tsv") else self.max_bytes
                        if member.size > most:
                            message = f"{member.size} bytes; enhance.max_bytes allows {most}"
                            self.members += 1
                            yield name, ClipError("too_large", message)
                            continue
                        file = tar.extractfile(member)
                        assert file is not None
                        data = file.read()
                        self.members += 1
                        yield name, data
                while stream.read(1 << 20):  # to the end: what follows the end mark is checked by gzip, too
                    pass
                if stream.tail.strip(b"\0") or stream.total < TAIL:
                    self.problem = f"the archive is cut short after {self.members} members: its end mark is missing"
            except (*DAMAGE, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # a failing disk, not a damaged archive (bz2 says so without a number)
                self.problem = f"the archive is damaged or cut short after {self.members} members: {error}"

    def _name(self, member: tarfile.TarInfo, seen: set[int]) -> str | None:
        """The member's name without a leading ./; None where it is passed over."""
        if member.isdir():
            return None
        name = member.name.removeprefix("./")
        if not member.isreg() or member.issparse():
            self.passed_over["members that are links, devices or the like"] += 1
        elif name.startswith("/") or ".." in name.split("/") or "\0" in name or not _is_text(name):
            self.passed_over["members with a name that is absolute, leads upwards or is not UTF-8"] += 1
        elif hash(name) in seen:
            self.passed_over["members with a name that was there before"] += 1
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
