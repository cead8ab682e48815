"""Moments and spans of time, as they stand in files and as people read them. All moments are in UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> str:
    """Now in ISO 8601 with milliseconds; sorts as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def unix(moment: str) -> float:
    """Seconds since 1970 of a moment in ISO 8601."""
    return datetime.fromisoformat(moment).timestamp()


def clock(seconds: float) -> str:
    """Seconds since 1970 for a person, to the minute."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def span(seconds: float) -> str:
    """A duration for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
