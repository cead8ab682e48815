from pathlib import Path

from speechmill.config import job_settings
from speechmill.runlog.job_context import logged
from speechmill.storage.files import read_json, write_json

with logged(snakemake) as report:
    from speechmill.ranking.profile import freeze
    from speechmill.ranking.rank_run import Lists, RunRanking
    from speechmill.ranking.removals import read_removals
    from speechmill.sources.manifest import clips_reader

    inputs, params, config = snakemake.input, snakemake.params, job_settings(snakemake)
    measured = read_json(inputs.preflight)["metrics"]
    profile = freeze(params.profile, measured, params.threshold, params.weights)
    write_json(snakemake.output.profile, profile.to_json())
    run_dir = Path(snakemake.output.ranked).parents[1]
    lists = Lists.read(inputs.duplicates, inputs.held_out, inputs.near_duplicates)
    removed = read_removals(Path(config["outdir"], config["dataset"]))
    batches = [Path(path).name.removesuffix(".enhance.parquet") for path in inputs.ledgers]
    ranking = RunRanking(run_dir, profile, lists, removed, clips_reader(run_dir / "manifest"))
    report(**ranking.rank_all(batches, snakemake.threads))
