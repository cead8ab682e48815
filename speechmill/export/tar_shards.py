"""Reproducible tar files, and numbered shards of a split."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from speechmill.export.rows import Clip
from speechmill.storage.files import atomic_path

Shard = Callable[[Clip], int]  # writes a clip, returns its bytes


@contextmanager
def tar_file(final: Path) -> Iterator[Callable[[str, bytes], None]]:
    """A function that adds a member (name, bytes). Members have no time and no owner, so the bytes are reproducible."""
    with atomic_path(final) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        yield add


@dataclass
class _OpenShard:
    stack: ExitStack
    write: Shard
    number: int
    held: int = 0


def write_shards(
    clips: Iterable[Clip], shard_bytes: int, shard: Callable[[str, int], AbstractContextManager[Shard]]
) -> None:
    """Write clips in order to shards of their splits. A shard is full at `shard_bytes` or more.

    `shard` opens a shard by split and number (from 0). It has its final name before the next one is opened.
    """
    with ExitStack() as every:
        opened: dict[str, _OpenShard] = {}
        for clip in clips:
            current = opened.get(clip.split)
            if current is None or current.held >= shard_bytes:
                if current:
                    current.stack.close()
                number = current.number + 1 if current else 0
                stack = every.enter_context(ExitStack())
                current = _OpenShard(stack, stack.enter_context(shard(clip.split, number)), number)
                opened[clip.split] = current
            current.held += current.write(clip)
