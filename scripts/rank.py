from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.files import read_json
from speechmill.job import logged

with logged(snakemake) as tell:
    from speechmill.duplicates import rows_among
    from speechmill.ledger import check_batch, check_count, tally
    from speechmill.manifest import read_batch
    from speechmill.ranking.decide import rank_batch
    from speechmill.ranking.profile import FrozenProfile
    from speechmill.removal import read_removals
    from speechmill.shards import write_table

    batch = snakemake.wildcards.batch
    description, clips = read_batch(Path(snakemake.input.batch))
    ledger = pq.ParquetFile(snakemake.input.ledger).read()
    ids = ledger["id"]
    ranking = rank_batch(
        ledger,
        ledger,
        pq.ParquetFile(snakemake.input.scores).read(),
        rows_among(ids, snakemake.input.duplicates),
        FrozenProfile.from_json(read_json(snakemake.input.profile)),
        batch,
        rows_among(ids, snakemake.input.held_out),
        rows_among(ids, snakemake.input.near_duplicates),
        read_removals(Path(snakemake.config["outdir"], snakemake.config["dataset"])),
    )
    check_count(description["clips"], ids, batch)
    check_batch(ids if clips is None else clips["id"], ledger, ranking, batch)
    write_table(ranking, snakemake.output.ranking)
    accepted = pc.equal(ranking["state"], "accepted")  # of these, what is published counts
    tell(**tally(ranking["state"], pc.if_else(accepted, ranking["duration"], ranking["input_duration"])))
