import shutil
from pathlib import Path

from speechmill.config import job_settings
from speechmill.runlog.job_context import logged
from speechmill.storage.files import write_json

with logged(snakemake):
    from speechmill.sources import open_source
    from speechmill.sources.fetch import check_size
    from speechmill.sources.manifest import describe_source
    from speechmill.sources.revision import UNKNOWN, asked_for

    config = job_settings(snakemake, source=snakemake.params.source)
    source = open_source(config)
    state = snakemake.params.fingerprint
    state = source.fingerprint() if state == UNKNOWN else state
    source.pin(state)
    description = describe_source(source, config)
    description |= {"state": state, "asked_for": asked_for(config["source"])}
    if source.fetched:
        check_size(description, config["download"]["max_gb"], shutil.disk_usage(source.work).free)
    write_json(Path(snakemake.output.source), description)
