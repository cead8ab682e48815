from pathlib import Path

from speechmill.files import read_json, write_text
from speechmill.job import logged

with logged(snakemake):
    from speechmill.publish.hub import batches_of, cost_of, without_audio

    again = Path(snakemake.output.batches)
    run_dir = again.parents[1]
    batches = batches_of([Path(path) for path in snakemake.input.rankings], run_dir)
    found = without_audio(batches, read_json(snakemake.input.profile), snakemake.config, again.parent)
    write_text(again, "\n".join([cost_of(found, len(batches), run_dir), *(batch.id for batch in found)]) + "\n")
