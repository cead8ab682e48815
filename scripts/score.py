from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.devices import describe, device_of
from speechmill.job import logged

with logged(snakemake) as tell:
    from speechmill.ledger import tally
    from speechmill.metrics.job import score_batch
    from speechmill.preflight import read_preflight

    device = device_of(snakemake.resources.get("gpu", 0), snakemake.config["device"])
    tell(device=describe(device))
    score_batch(
        Path(snakemake.input.enhanced),
        snakemake.config,
        read_preflight(Path(snakemake.input.preflight)),
        device,
        snakemake.threads,
        Path(snakemake.output.scores),
        snakemake.resources.engine_attempt,
    )
    clips = pq.read_table(snakemake.output.scores, columns=["error_class", "duration"])
    tell(**tally(pc.if_else(pc.is_valid(clips["error_class"]), "errored", "scored"), clips["duration"]))
