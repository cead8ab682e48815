from pathlib import Path

from speechmill.job import device_of, logged

with logged(snakemake.log):
    from speechmill.metrics.job import score_batch

    counts = score_batch(
        Path(snakemake.input.enhanced),
        snakemake.config,
        device_of(snakemake.resources),
        snakemake.threads,
        snakemake.resources.batch_seconds,
        Path(snakemake.output.scores),
    )
    print(counts)
