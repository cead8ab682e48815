"""Text of corpora: which encoding it has, and the rows of TSV, CSV and JSON Lines files, each with its own problem."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from speechmill.errors import ClipError, SourceError
from speechmill.sources.boundary import is_machine_error, reason
from speechmill.utils.schema import nearest
from speechmill.utils.text import plain

UTF8 = ("utf-8",)
BOMS = (  # the longest first: that of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
CONTROLS = re.compile("[\x01-\x08\x0e-\x1f\x7f]")
CONTROL_SHARE = 0.1  # of a text; Thai in UTF-16 is valid UTF-8 of which every second character is one
LINE_BYTES = 1 << 24  # longest line
RECORD_LINES = 200  # longest record, if line breaks are quoted; a quote that is never closed is given up there
LOOKED_AT = 100_000  # lines that decide whether a TSV file is quoted


@dataclass(frozen=True)
class TableRow:
    """A row of a table: the number of its first line, its cells by column, and why it cannot be used (None if it can)."""

    line: int
    cells: dict[str, Any]
    problem: str | None = None


def decode_text(data: bytes, encodings: Sequence[str] = UTF8) -> str:
    """Text from bytes: by its byte order mark, else by the first of `encodings` in which it is valid.

    Raises:
        ClipError: `bad_row`: it is valid in none of them, or contains NUL.
    """
    marked = next((encoding for mark, encoding in BOMS if data.startswith(mark)), None)
    return _decode(data, (marked,) if marked else encodings)


def _decode(data: bytes, encodings: Sequence[str]) -> str:
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except (UnicodeDecodeError, UnicodeError):
            continue
        controls = len(CONTROLS.findall(text)) if not text.isprintable() else 0
        if "\0" in text or controls > len(text) * CONTROL_SHARE:
            raise ClipError("bad_row", "the text contains NUL or control characters; it may be UTF-16, or damaged")
        return text
    raise ClipError(
        "bad_row",
        f"the text is not valid in {', '.join(encodings)}: add its encoding to source.encodings, or convert it",
    )


def parse_json(data: bytes, encodings: Sequence[str] = UTF8) -> dict[str, Any]:
    """A JSON object from bytes.

    Raises:
        ClipError: `bad_row`: it is not valid JSON, too deeply nested, has a number of too many digits, or is no object.
    """
    try:
        value = json.loads(decode_text(data, encodings))
    except (ValueError, RecursionError) as error:
        raise ClipError("bad_row", f"not usable JSON: {reason(error)}") from None
    if not isinstance(value, dict):
        raise ClipError("bad_row", f"JSON of a {type(value).__name__}, not of an object")
    return value


def table_rows(file: Path, encodings: Sequence[str] = UTF8, key: str | None = None) -> Iterator[TableRow]:
    """The rows of a TSV, CSV or JSON Lines file. A row that cannot be used has a `problem`; others are unaffected.

    CSV is quoted. TSV is quoted only if it is written as a CSV writer does (`_is_quoted`), else a quote is a letter.

    Raises:
        SourceError: the file has another format, its header cannot be read, or it has no column `key`.
    """
    suffix = file.suffix.lower()
    if suffix not in (".jsonl", ".ndjson", ".tsv", ".csv"):
        raise SourceError(f"{file}: metadata must be .tsv, .csv, .jsonl or .ndjson")
    with open(file, "rb") as handle:
        if suffix in (".jsonl", ".ndjson"):
            yield from _json_rows(handle, encodings)
            return
        names, rows = delimited_rows(handle, "\t" if suffix == ".tsv" else ",", encodings, str(file))
        if key is not None and key not in names:
            raise SourceError(f"{file}: no column {key!r}; {nearest(key, map(plain, names))} Set source.metadata_key.")
        yield from rows


def delimited_rows(
    handle: BinaryIO, delimiter: str, encodings: Sequence[str], where: str
) -> tuple[list[str], Iterator[TableRow]]:
    """The columns and the rows of a table with a header, from a seekable binary file.

    Raises:
        SourceError: the header cannot be read.
    """
    start = handle.tell()
    quoted = delimiter == "," or _is_quoted(decoded_lines(handle, encodings), delimiter)
    handle.seek(start)
    records = _records(decoded_lines(handle, encodings), delimiter, quoted)
    _, names, problem = next(records, (1, [], None))
    if problem:
        raise SourceError(f"{where}: the header cannot be read: {problem}")

    def rows() -> Iterator[TableRow]:
        for line, cells, problem in records:
            if problem is None and len(cells) != len(names):
                problem = f"{len(cells)} cells instead of {len(names)}"
            yield TableRow(line, {} if problem else dict(zip(names, cells, strict=True)), problem)

    return names, rows()


def _json_rows(handle: BinaryIO, encodings: Sequence[str]) -> Iterator[TableRow]:
    for number, (line, problem) in enumerate(decoded_lines(handle, encodings), 1):
        if problem:
            yield TableRow(number, {}, problem)
        elif line.strip():
            try:
                yield TableRow(number, parse_json(line.encode("utf-8", "surrogatepass")))
            except ClipError as error:
                yield TableRow(number, {}, error.message)
            except Exception as error:
                if is_machine_error(error):
                    raise
                yield TableRow(number, {}, reason(error))


def decoded_lines(handle: BinaryIO, encodings: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Each line without its end, and why it cannot be read."""
    start = handle.read(4)
    mark, encoding = next(((mark, name) for mark, name in BOMS if start.startswith(mark)), (b"", None))
    handle.seek(-len(start), io.SEEK_CUR)
    if encoding and encoding != "utf-8-sig":  # the bytes of a line break are part of other characters
        text = io.TextIOWrapper(
            io.BufferedReader(_Kept(handle)), encoding=encoding, errors="surrogatepass", newline=None
        )
        try:
            for decoded in text:
                yield decoded.removesuffix("\n"), "it contains NUL" if "\0" in decoded else None
        except UnicodeDecodeError as error:
            yield "", f"the rest of the file is not valid {encoding}: {error.reason}"
        return
    handle.seek(len(mark), io.SEEK_CUR)
    while line := handle.readline(LINE_BYTES):
        if len(line) == LINE_BYTES and not line.endswith(b"\n"):  # without reading it into memory
            size = len(line)
            while (rest := handle.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                size += len(rest)
            yield "", f"the line has more than {size} bytes; {LINE_BYTES} are allowed"
            continue
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if line.isascii() and b"\0" not in line:
            yield line.decode("ascii"), None
            continue
        try:
            yield _decode(line, encodings), None
        except ClipError as error:
            yield "", error.message


class _Kept(io.RawIOBase):
    """A binary file for a TextIOWrapper, which would close it."""

    def __init__(self, handle: BinaryIO):
        self.handle = handle

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self.handle.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


Record = tuple[int, list[str], str | None]  # number of the first line, cells, problem


def _records(lines: Iterator[tuple[str, str | None]], delimiter: str, quoted: bool) -> Iterator[Record]:
    """Cut lines into records. A quote that is never closed spoils its own line only: the next lines are read again."""
    numbered = ((number, line, problem) for number, (line, problem) in enumerate(lines, 1))
    waiting: deque[tuple[int, str, str | None]] = deque()  # read, not yet used
    while (found := waiting.popleft() if waiting else next(numbered, None)) is not None:
        number, line, problem = found
        if problem:
            yield number, [], problem
        elif line and (not quoted or '"' not in line):
            yield number, line.split(delimiter), None
        elif line:
            yield _quoted_record(number, line, waiting, numbered, delimiter)


def _quoted_record(
    number: int,
    line: str,
    waiting: deque[tuple[int, str, str | None]],
    numbered: Iterator[tuple[int, str, str | None]],
    delimiter: str,
) -> Record:
    used = 0
    while line.count('"') % 2:
        if used == len(waiting) and (following := next(numbered, None)) is not None:
            waiting.append(following)
        if used == len(waiting) or used == RECORD_LINES or waiting[used][2] or len(line) > LINE_BYTES:
            return number, [], "a quote is not closed"
        line += "\n" + waiting[used][1]
        used += 1
    cells = _split(line, delimiter)
    if cells is None:
        return number, [], "text after a closing quote, or a quote is not closed"
    for _ in range(used):
        waiting.popleft()
    return number, cells, None


def _split(record: str, delimiter: str) -> list[str] | None:
    """The cells of one quoted record; None if it is not one."""
    csv.field_size_limit(1 << 30)
    try:
        rows = list(csv.reader(io.StringIO(record, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _is_quoted(lines: Iterator[tuple[str, str | None]], delimiter: str) -> bool:
    """Whether a table is written by a CSV writer: all its records with a quote come out the same when written again.

    Mozilla's tables have unquoted sentences such as `"Go," she said` or a single `"`. pandas and Python's csv would
    have written them with doubled quotes.
    """
    found = all_quoted = False
    for number, record in islice(_with_quotes(lines, delimiter), LOOKED_AT):
        cells = _split(record, delimiter)
        if cells is None:
            return False
        if not found:
            all_quoted = number == 1 and _written(cells, csv.QUOTE_ALL, delimiter) == record
        whole = [f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in cells]
        bare = [not set(cell) & {'"', delimiter, "\n"} for cell in cells]
        # With csv.QUOTE_NONNUMERIC some cells of a record are quoted, and those of the header are all.
        mixed = all_quoted and all(cell in record or plain for cell, plain in zip(whole, bare, strict=True))
        if not mixed and _written(cells, csv.QUOTE_MINIMAL, delimiter) != record:
            return False
        found = True
    return found


def _with_quotes(lines: Iterator[tuple[str, str | None]], delimiter: str) -> Iterator[tuple[int, str]]:
    """Each record with a quote, and its first line's number: lines are joined until their quotes are even in number."""
    record, first, used = "", 1, 0
    for number, (line, _) in enumerate(lines, 1):
        record, first, used = (f"{record}\n{line}", first, used + 1) if used else (line, number, 1)
        if record.count('"') % 2 and used < RECORD_LINES:
            continue
        if '"' in record:
            yield first, record
        used = 0
    if used:
        yield first, record


def _written(cells: list[str], quoting: Literal[0, 1], delimiter: str) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerow(cells)
    return text.getvalue()[:-1]
