from pathlib import Path

from speechmill.job import logged

with logged(snakemake) as tell:
    from speechmill.fetch import fetch_file
    from speechmill.sources import open_source

    tell(
        **fetch_file(
            open_source(snakemake.config),
            Path(snakemake.input.source),
            snakemake.wildcards.file,
            Path(snakemake.output[0]),
            snakemake.config["download"]["max_gb"],
        )
    )
