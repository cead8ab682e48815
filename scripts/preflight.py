from pathlib import Path

from speechmill.files import write_json
from speechmill.job import logged

with logged(snakemake):
    from speechmill.preflight import preflight

    output = Path(snakemake.output.report)
    here = Path(snakemake.config["outdir"], snakemake.config["dataset"])
    report = preflight(snakemake.config, Path(snakemake.params.config_dir), here)
    write_json(output, report)
