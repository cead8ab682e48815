"""Schemas of all tables, Parquet writing, batches.tsv, splits. Defines columns; does not compute their values."""
