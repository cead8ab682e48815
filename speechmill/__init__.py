"""speechmill: speech corpora enhanced, scored, ranked and published, by Snakemake."""

__version__ = "0.1.0"
