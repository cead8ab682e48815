import shutil
from pathlib import Path

from speechmill.files import write_json
from speechmill.job import logged

with logged(snakemake):
    from speechmill.fetch import check_size
    from speechmill.manifest import describe_source
    from speechmill.sources import open_source
    from speechmill.sources.revision import UNKNOWN, asked_for

    source = open_source(snakemake.config)
    state = snakemake.params.fingerprint
    state = source.fingerprint() if state == UNKNOWN else state
    source.pin(state)
    description = describe_source(source, snakemake.config)
    description |= {"state": state, "asked_for": asked_for(snakemake.config["source"])}
    if source.fetched:
        check_size(description, snakemake.config["download"]["max_gb"], shutil.disk_usage(source.work).free)
    write_json(Path(snakemake.output.source), description)
