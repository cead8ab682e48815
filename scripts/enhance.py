from pathlib import Path

import pyarrow.parquet as pq

from speechmill.config import job_settings
from speechmill.engine.devices import describe, device_of
from speechmill.runlog.job_context import logged

with logged(snakemake) as report:
    from speechmill.enhance.enhance_batch import enhance_batch
    from speechmill.metrics.found import read_preflight
    from speechmill.ranking.states import tally
    from speechmill.sources import open_source

    enhanced = Path(snakemake.output.enhanced)
    again = "ledger" not in snakemake.output.keys()  # noqa: SIM118 (its audio alone)
    ledger = enhanced.with_suffix(".ledger") if again else Path(snakemake.output.ledger)
    # The manifest stands for the source: it is repeated when the source changes, and its batches when they change.
    config = job_settings(snakemake, enhance=snakemake.params.settings, source=snakemake.config["source"])
    device = device_of(snakemake.resources.get("gpu", 0), config["device"])
    report(device=describe(device))
    enhance_batch(
        Path(snakemake.input.batch),
        open_source(config),
        Path(snakemake.input.fetched) if snakemake.input.fetched else None,
        config,
        read_preflight(Path(snakemake.input.preflight)),
        device,
        snakemake.threads,
        enhanced,
        ledger,
        snakemake.resources.engine_attempt,
    )
    clips = pq.read_table(ledger, columns=["state", "input_duration"])
    report(**tally(clips["state"], clips["input_duration"]))
    if again:
        ledger.unlink()
