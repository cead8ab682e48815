from speechmill.files import read_json, write_json
from speechmill.job import logged

with logged(snakemake):
    from speechmill.ranking.advice import advise
    from speechmill.ranking.profile import FrozenProfile

    profile = FrozenProfile.from_json(read_json(snakemake.input.profile))
    write_json(snakemake.output.advice, advise(snakemake.input.rankings, profile))
