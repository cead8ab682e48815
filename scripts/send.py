from pathlib import Path

from speechmill.files import read_json, write_json
from speechmill.job import logged

with logged(snakemake):
    from speechmill.publish.ahead import ranked_alone
    from speechmill.publish.hub import send_batch
    from speechmill.publish.survey import Batch, origin_of

    inputs = snakemake.input
    enhanced, ledger, scores = (Path(inputs[name]) for name in ("enhanced", "ledger", "scores"))
    profile = read_json(inputs.profile)
    run_dir = ledger.parents[1]
    here = Path(snakemake.config["outdir"], snakemake.config["dataset"])  # where the list of removals is
    with ranked_alone(snakemake.wildcards.batch, ledger, scores, profile, snakemake.config, here) as ranking:
        batch = Batch(snakemake.wildcards.batch, ranking, (enhanced,), origin_of(ledger), origin_of(scores))
        sent = send_batch(batch, profile, snakemake.config, run_dir / "published")
    write_json(snakemake.output.sent, sent)
