from pathlib import Path

from speechmill.files import read_json
from speechmill.job import logged

with logged(snakemake):
    from speechmill.policy import check_policy
    from speechmill.publish.folder import publish_folder

    check_policy(snakemake.config)

    sentinel = Path(snakemake.output.sentinel)
    enhanced = {Path(path).stem: Path(path) for path in snakemake.input.enhanced}
    rankings = {Path(path).stem: Path(path) for path in snakemake.input.rankings}
    configured = snakemake.config["publish"]["path"]
    publish_folder(
        [(batch, enhanced[batch], rankings[batch]) for batch in sorted(rankings)],
        read_json(snakemake.input.profile),
        read_json(snakemake.input.summary),
        read_json(snakemake.input.source),
        snakemake.config,
        Path(configured) if configured else sentinel.with_name("dataset"),
        sentinel,
    )
