"""In which order clips are published."""

from __future__ import annotations

from typing import Any


def shuffled_by(publish: dict[str, Any]) -> str:
    """`publish.shuffle`: unless set, by corpus in a folder, and by batch on the Hub, where shards are sent early."""
    return publish["shuffle"] or ("batch" if publish["kind"] == "hub" else "corpus")
