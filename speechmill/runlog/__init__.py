"""The logs of a run: job logs, attempts, Snakemake's events, run lock, progress. Independent of audio and clusters."""
