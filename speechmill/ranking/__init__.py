"""From metrics to decisions: gates, then TOPSIS to a fixed ideal, by a frozen profile (docs/ranking.md)."""
