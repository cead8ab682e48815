"""Exact and near duplicates, fingerprints, held-out clips. Knows tables of clips, not how clips are published or shown."""
