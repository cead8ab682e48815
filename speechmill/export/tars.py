"""Tar files whose bytes depend on their members alone, and numbered shards of a split."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from speechmill.export.rows import Clip
from speechmill.files import atomic_path

Shard = Callable[[Clip], int]  # writes a clip, returns its bytes


@contextmanager
def tar_file(final: Path) -> Iterator[Callable[[str, bytes], None]]:
    """A function that adds a member (name, bytes); members have neither time nor owner."""
    with atomic_path(final) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        yield add


@dataclass
class _Open:
    stack: ExitStack
    write: Shard
    number: int
    held: int = 0


def write_shards(
    clips: Iterable[Clip], shard_bytes: int, shard: Callable[[str, int], AbstractContextManager[Shard]]
) -> None:
    """Write clips in their order to shards of their splits; one that holds `shard_bytes` or more is full.

    `shard` opens one of a split and a number from 0; it stands under its name when the next one is opened.
    """
    with ExitStack() as every:
        opened: dict[str, _Open] = {}
        for clip in clips:
            current = opened.get(clip.split)
            if current is None or current.held >= shard_bytes:
                if current:
                    current.stack.close()
                number = current.number + 1 if current else 0
                stack = every.enter_context(ExitStack())
                current = _Open(stack, stack.enter_context(shard(clip.split, number)), number)
                opened[clip.split] = current
            current.held += current.write(clip)
