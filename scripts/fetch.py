from pathlib import Path

from speechmill.config import job_settings
from speechmill.runlog.job_context import logged

with logged(snakemake) as report:
    from speechmill.sources import open_source
    from speechmill.sources.fetch import fetch_file

    config = job_settings(snakemake, source=snakemake.config["source"])  # the file is named after its content
    report(
        **fetch_file(
            open_source(config),
            Path(snakemake.input.source),
            snakemake.wildcards.file,
            Path(snakemake.output[0]),
            config["download"]["max_gb"],
        )
    )
