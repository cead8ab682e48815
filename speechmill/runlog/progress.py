"""Progress of a run, counted from its files."""

from __future__ import annotations

from pathlib import Path

from speechmill.tables.batches import read_batches


def finished_pieces(run_dir: Path) -> int:
    """Return the number of ledgers, scores and rankings of batches. It grows as the run proceeds."""
    return sum(len(list((run_dir / stage).glob("*.parquet"))) for stage in ("ledger", "scores", "ranking"))


def unscored_batches(run_dir: Path) -> tuple[int, set[str]]:
    """Return the number of batches in the manifest, and the names of those without scores.

    (0, empty) without a manifest.
    """
    table = run_dir / "manifest" / "batches.tsv"
    if not table.exists():
        return 0, set()
    names = {row["batch"] for row in read_batches(table)}
    return len(names), names - {path.stem for path in (run_dir / "scores").glob("*.parquet")}
