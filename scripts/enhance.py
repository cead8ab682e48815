from pathlib import Path

from speechmill.devices import device_of
from speechmill.job import logged

with logged(snakemake):
    from speechmill.enhance.job import enhance_batch
    from speechmill.preflight import read_preflight
    from speechmill.sources import open_source

    enhanced = Path(snakemake.output.enhanced)
    again = "ledger" not in snakemake.output.keys()  # noqa: SIM118 (its audio alone)
    ledger = enhanced.with_suffix(".ledger") if again else Path(snakemake.output.ledger)
    counts = enhance_batch(
        Path(snakemake.input.batch),
        open_source(snakemake.config),
        Path(snakemake.input.fetched) if snakemake.input.fetched else None,
        snakemake.config,
        read_preflight(Path(snakemake.input.preflight)),
        device_of(snakemake.resources.gpu, snakemake.config["device"]),
        snakemake.threads,
        enhanced,
        ledger,
        snakemake.resources.engine_attempt,
    )
    if again:
        ledger.unlink()
    print(counts)
