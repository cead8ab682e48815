"""The boundary around what a corpus contains: an exception while a row is read is that row's error, never the batch's.

An error of this machine (memory, a failing disk) is not the corpus's fault and passes through. An error of the program
is not hidden either: its class and text are in the ledger, and a file all of whose rows fail alike is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from speechmill.errors import ClipError, ClipRejection, SourceError
from speechmill.utils.text import encodable, plain

# A row of MANIFEST without `id` and `source`; its encoded audio, the file with it, or the reason why there is none.
Clip = tuple[dict[str, Any], bytes | Path | ClipError]

# Where a clip is, and what holds for all clips of its source. They stay on a row that cannot be read.
PLACE = (
    "source_file",
    "source_row",
    "source_member",
    "source_id",
    "source_split",
    "language",
    "license",
    "id",
    "source",
)
COLUMN_CHARACTERS = 1 << 22  # longest value of a column
ALIKE = 2  # rows that fail alike before their file is refused; a single one may be damaged alone


class RowError(ClipError):
    """An exception that no reader expected, as the error of the row that raised it (`bad_row`).

    `kind` is the name of the exception's class.
    """

    def __init__(self, where: str, error: BaseException):
        super().__init__("bad_row", f"{where}: {reason(error)}")
        self.kind = type(error).__name__


def is_machine_error(error: BaseException) -> bool:
    """Whether the machine failed: memory, or a file system (its errors have a number; those of damaged data have none)."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


def reason(error: BaseException) -> str:
    """One line about an exception: class and text."""
    text = plain(str(error), 240)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def read_row(place: Mapping[str, Any], where: str, read: Callable[[], Clip]) -> Clip:
    """Read one row.

    Args:
        place: the columns of `PLACE` that are known without reading it.
        where: file and row or member, for the message.
        read: returns the row and its audio.

    Returns:
        What `read` returns. If it raises, `place` with a ClipError.
    """
    try:
        return read()
    except ClipError as error:
        return dict(place), error
    except Exception as error:
        if is_machine_error(error):
            raise
        return dict(place), RowError(where, error)


def check_row(clip: Clip) -> Clip:
    """The clip, or its place with a ClipError (`bad_row`) if a value cannot be stored: half a character, NUL, too long."""
    row, data = clip
    for name, value in row.items():
        if isinstance(value, str) and (problem := _problem(value)):
            place = {key: _clean(row[key]) for key in PLACE if key in row}
            return place, data if isinstance(data, ClipError) else ClipError("bad_row", f"column {name}: {problem}")
    return clip


def _problem(value: str) -> str | None:
    if len(value) > COLUMN_CHARACTERS:
        return f"{len(value)} characters; {COLUMN_CHARACTERS} are allowed"
    if "\0" in value:
        return "it contains NUL; the text may be UTF-16, or damaged"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"character {error.start} is half a surrogate pair, such as half an emoji"
    return None


def _clean(value: Any) -> Any:
    return encodable(value[:COLUMN_CHARACTERS]) if isinstance(value, str) else value


def read_file(where: str, clips: Iterable[Clip]) -> Iterator[Clip]:
    """The clips of a file, each checked.

    Raises:
        SourceError: the reader failed outside its rows, or all rows failed alike with an exception that no reader
            expected. The message names the file.
    """
    alike: list[Clip] = []  # from the first row on, while all fail with one kind of exception
    kind: str | None = None
    held = True
    try:
        for clip in map(check_row, clips):
            error = clip[1]
            if held and isinstance(error, RowError) and kind in (None, error.kind):
                kind = error.kind
                alike.append(clip)
                continue
            held = False
            yield from alike
            alike.clear()
            yield clip
    except (SourceError, ClipRejection):
        raise
    except Exception as error:
        if is_machine_error(error):
            raise
        raise SourceError(f"{where}: cannot be read: {reason(error)}") from error
    if len(alike) >= ALIKE:
        raise SourceError(
            f"{where}: refused, because all of its {len(alike)} rows fail alike. The first: {alike[0][1]!s}"
        )
    yield from alike
