from pathlib import Path

import pyarrow.parquet as pq

from speechmill.devices import describe, device_of
from speechmill.job import logged

with logged(snakemake) as tell:
    from speechmill.enhance.job import enhance_batch
    from speechmill.ledger import tally
    from speechmill.preflight import read_preflight
    from speechmill.sources import open_source

    enhanced = Path(snakemake.output.enhanced)
    again = "ledger" not in snakemake.output.keys()  # noqa: SIM118 (its audio alone)
    ledger = enhanced.with_suffix(".ledger") if again else Path(snakemake.output.ledger)
    device = device_of(snakemake.resources.get("gpu", 0), snakemake.config["device"])
    tell(device=describe(device))
    enhance_batch(
        Path(snakemake.input.batch),
        open_source(snakemake.config),
        Path(snakemake.input.fetched) if snakemake.input.fetched else None,
        snakemake.config,
        read_preflight(Path(snakemake.input.preflight)),
        device,
        snakemake.threads,
        enhanced,
        ledger,
        snakemake.resources.engine_attempt,
    )
    clips = pq.read_table(ledger, columns=["state", "input_duration"])
    tell(**tally(clips["state"], clips["input_duration"]))
    if again:
        ledger.unlink()
