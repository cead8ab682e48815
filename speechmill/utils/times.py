"""Times and durations in files and messages. All times are in UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> str:
    """Return the current time in ISO 8601 with milliseconds; it sorts as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def unix(moment: str) -> float:
    """Convert a time in ISO 8601 to seconds since 1970."""
    return datetime.fromisoformat(moment).timestamp()


def clock(seconds: float) -> str:
    """Format seconds since 1970, to the minute."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def span(seconds: float) -> str:
    """Format a duration in seconds."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
