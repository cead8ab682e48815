from pathlib import Path

from speechmill.files import read_json, write_json
from speechmill.job import logged

with logged(snakemake):
    from speechmill.metrics import all_metrics
    from speechmill.ranking.profile import freeze, load_profile

    profile = load_profile(snakemake.input.profile, Path(snakemake.input.schema).parent, all_metrics())
    measured = read_json(snakemake.input.preflight)["metrics"]
    rank = snakemake.params
    write_json(snakemake.output.profile, freeze(profile, measured, rank.threshold, rank.weights).to_json())
