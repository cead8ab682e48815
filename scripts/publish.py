from pathlib import Path

from speechmill.config import job_settings
from speechmill.runlog.job_context import logged
from speechmill.storage.files import read_json

with logged(snakemake):
    from speechmill.publish.target import target_of
    from speechmill.publish.terms import check_policy
    from speechmill.publish.to_hub import batches_of
    from speechmill.ranking.index import ranking_files

    config = job_settings(snakemake, publish=snakemake.params.settings, **snakemake.params.described)
    check_policy(config)
    sentinel = Path(snakemake.output.sentinel)
    batches = batches_of(ranking_files(Path(snakemake.input.ranked)).values(), sentinel.parents[1])
    tables = [read_json(snakemake.input[name]) for name in ("profile", "summary", "source")]
    here = Path(config["outdir"], config["dataset"])  # unlike the folder of a job that works on copies from a bucket
    target_of(config).publish(batches, *tables, sentinel, here)
