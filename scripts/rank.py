from pathlib import Path

import pyarrow.parquet as pq

from speechmill.files import read_json
from speechmill.job import logged

with logged(snakemake):
    from speechmill.duplicates import duplicates_among
    from speechmill.ledger import check_batch
    from speechmill.manifest import read_batch
    from speechmill.ranking.decide import rank_batch
    from speechmill.ranking.profile import FrozenProfile
    from speechmill.shards import write_table

    batch = snakemake.wildcards.batch
    _, clips = read_batch(Path(snakemake.input.batch))
    ledger = pq.ParquetFile(snakemake.input.ledger).read()
    ranking = rank_batch(
        ledger,
        clips,
        pq.ParquetFile(snakemake.input.scores).read(),
        duplicates_among(clips["id"], snakemake.input.duplicates),
        FrozenProfile.from_json(read_json(snakemake.input.profile)),
        batch,
    )
    check_batch(clips["id"], ledger, ranking, batch)
    write_table(ranking, snakemake.output.ranking)
