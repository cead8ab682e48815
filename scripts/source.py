from pathlib import Path

from speechmill.files import write_json
from speechmill.job import logged

with logged(snakemake):
    from speechmill.manifest import describe_source
    from speechmill.sources import open_source

    output = Path(snakemake.output.source)
    checksums = output.with_name(".checksums.parquet")
    write_json(output, describe_source(open_source(snakemake.config), snakemake.config, checksums))
