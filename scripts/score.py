from pathlib import Path

from speechmill.devices import device_of
from speechmill.job import logged

with logged(snakemake):
    from speechmill.metrics.job import score_batch

    counts = score_batch(
        Path(snakemake.input.enhanced),
        snakemake.config,
        device_of(snakemake.resources.gpu, snakemake.config["device"]),
        snakemake.threads,
        snakemake.resources.batch_seconds,
        Path(snakemake.output.scores),
    )
    print(counts)
