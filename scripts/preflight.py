from pathlib import Path

from speechmill.files import write_json
from speechmill.job import logged

with logged(snakemake):
    from speechmill.preflight import preflight

    output = Path(snakemake.output.report)
    report = preflight(snakemake.config, Path(snakemake.params.config_dir), output.parent)
    write_json(output, report)
