from pathlib import Path

from speechmill.job import device_of, logged

with logged(snakemake.log):
    from speechmill.enhance.job import enhance_batch
    from speechmill.sources import open_source

    counts = enhance_batch(
        Path(snakemake.input.batch),
        open_source(snakemake.config),
        snakemake.config,
        device_of(snakemake.resources),
        snakemake.threads,
        snakemake.resources.batch_seconds,
        Path(snakemake.output.enhanced),
        Path(snakemake.output.ledger),
    )
    print(counts)
