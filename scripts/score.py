from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.config import job_settings
from speechmill.engine.devices import describe, device_of
from speechmill.runlog.job_context import logged

with logged(snakemake) as report:
    from speechmill.metrics.found import read_preflight
    from speechmill.metrics.score_batch import score_batch
    from speechmill.ranking.states import tally

    config = job_settings(snakemake, score=snakemake.params.settings)
    device = device_of(snakemake.resources.get("gpu", 0), config["device"])
    report(device=describe(device))
    score_batch(
        Path(snakemake.input.enhanced),
        config,
        read_preflight(Path(snakemake.input.preflight)),
        device,
        snakemake.threads,
        Path(snakemake.output.scores),
        snakemake.resources.engine_attempt,
    )
    clips = pq.read_table(snakemake.output.scores, columns=["error_class", "duration"])
    report(**tally(pc.if_else(pc.is_valid(clips["error_class"]), "errored", "scored"), clips["duration"]))
