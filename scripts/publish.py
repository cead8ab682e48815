from pathlib import Path

from speechmill.files import read_json
from speechmill.job import logged

with logged(snakemake):
    from speechmill.bucket import kept
    from speechmill.errors import SpeechmillError
    from speechmill.policy import check_policy
    from speechmill.publish.folder import publish_folder
    from speechmill.publish.hub import batches_of, check_target, publish_hub
    from speechmill.removal import read_removals

    config = snakemake.config
    check_policy(config)

    sentinel = Path(snakemake.output.sentinel)
    run_dir = sentinel.parents[1]
    batches = batches_of([Path(path) for path in snakemake.input.rankings], run_dir)
    tables = [read_json(snakemake.input[name]) for name in ("profile", "summary", "source")]
    if config["publish"]["kind"] == "hub":
        here = Path(config["outdir"], config["dataset"])  # where the list of removals is, even of a run in a bucket
        if check_target(config, here):
            raise SpeechmillError(
                "clips were removed from what is published that this run did not know of; they are on its list now: run again"
            )
        publish_hub(batches, *tables, config, sentinel.parent, sentinel, read_removals(here))
        if not config["keep_enhanced"]:  # committed and verified: the only copy on this side is not needed any more
            for batch in batches:
                batch.audio[0].unlink(missing_ok=True)
        # The next publication has to ask anew which audio it lacks.
        sentinel.with_name("again.txt").unlink(missing_ok=True)
    else:
        target = Path(config["publish"]["path"] or sentinel.with_name("dataset"))
        with kept(sentinel.parent, lambda name: name.startswith(f"{target.name}/")):
            publish_folder(batches, *tables, config, target, sentinel)
