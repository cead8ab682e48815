from pathlib import Path

from speechmill.files import read_json
from speechmill.job import logged

with logged(snakemake):
    from speechmill.bucket import kept
    from speechmill.manifest import build_manifest
    from speechmill.sources import open_source

    batches = Path(snakemake.output.batches)
    with kept(batches.parent, lambda name: name != batches.name):
        notes = build_manifest(
            open_source(snakemake.config), read_json(snakemake.input.source), snakemake.config, batches.parent
        )
    for note in notes:
        print(note)
