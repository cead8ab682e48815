from pathlib import Path

from speechmill.devices import device_of
from speechmill.job import logged

with logged(snakemake):
    from speechmill.metrics.job import score_batch
    from speechmill.preflight import read_preflight

    counts = score_batch(
        Path(snakemake.input.enhanced),
        snakemake.config,
        read_preflight(Path(snakemake.input.preflight)),
        device_of(snakemake.resources.gpu, snakemake.config["device"]),
        snakemake.threads,
        Path(snakemake.output.scores),
        snakemake.resources.engine_attempt,
    )
    print(counts)
