from pathlib import Path

from speechmill.config import job_settings
from speechmill.runlog.job_context import logged
from speechmill.storage.files import read_json, write_text

with logged(snakemake):
    from speechmill.publish.to_hub import batches_of, cost_of, without_audio
    from speechmill.ranking.index import ranking_files

    config = job_settings(snakemake, publish=snakemake.params.settings, **snakemake.params.described)
    again = Path(snakemake.output.batches)
    run_dir = again.parents[1]
    batches = batches_of(ranking_files(Path(snakemake.input.ranked)).values(), run_dir)
    found = without_audio(batches, read_json(snakemake.input.profile), config, again.parent)
    write_text(again, "\n".join([cost_of(found, len(batches), run_dir), *(batch.id for batch in found)]) + "\n")
