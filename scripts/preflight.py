from pathlib import Path

from speechmill.config import job_settings
from speechmill.runlog.job_context import logged
from speechmill.storage.files import write_json

with logged(snakemake):
    from speechmill.preflight import preflight

    config = job_settings(snakemake, **snakemake.params.settings)
    write_json(snakemake.output.report, preflight(config, Path(config["outdir"], config["dataset"])))
