from pathlib import Path

from speechmill.config import job_settings
from speechmill.runlog.job_context import logged
from speechmill.storage.files import read_json

with logged(snakemake):
    from speechmill.sources import open_source
    from speechmill.sources.manifest import build_manifest
    from speechmill.storage.run_folder import run_folder

    config = job_settings(snakemake, source=snakemake.params.source, batch_size=snakemake.params.batch_size)
    batches = Path(snakemake.output.batches)
    with run_folder().keeping(batches.parent, lambda name: name != batches.name):
        notes = build_manifest(open_source(config), read_json(snakemake.input.source), config, batches.parent)
    for note in notes:
        print(note)
