"""How a run is planned, started, supervised, resumed and stopped. Knows Snakemake's command line; not the API or the commands above it."""
