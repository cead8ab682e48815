from pathlib import Path

from speechmill.runlog.job_context import logged
from speechmill.storage.files import read_json, write_json

with logged(snakemake):
    from speechmill.publish.ahead import provisional_ranking
    from speechmill.publish.survey import Batch, origin_of
    from speechmill.publish.to_hub import send_batch
    from speechmill.ranking.profile import freeze
    from speechmill.runs.inputs import ranking_profile

    inputs, config = snakemake.input, snakemake.config
    enhanced, ledger, scores = (Path(inputs[name]) for name in ("enhanced", "ledger", "scores"))
    profile = freeze(
        ranking_profile(config, Path(snakemake.scriptdir).parent / "config"),
        read_json(inputs.preflight)["metrics"],
        config["rank"]["threshold"],
        config["rank"]["weights"],
    ).to_json()
    run_dir = ledger.parents[1]
    here = Path(config["outdir"], config["dataset"])  # where the list of removals is
    with provisional_ranking(snakemake.wildcards.batch, ledger, scores, profile, config, here) as ranking:
        batch = Batch(snakemake.wildcards.batch, ranking, (enhanced,), origin_of(ledger), origin_of(scores))
        sent = send_batch(batch, profile, config, run_dir / "published")
    write_json(snakemake.output.sent, sent)
