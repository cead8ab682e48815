# speechmill: includes and targets. The stages are in rules/.
import sys

from snakemake.utils import min_version

min_version("9.19")

sys.path.insert(0, workflow.basedir)


include: "rules/common.smk"
include: "rules/ingest.smk"
include: "rules/enhance.smk"
include: "rules/score.smk"
include: "rules/rank.smk"
include: "rules/report.smk"


if target.needs_network:

    include: "rules/publish_hub.smk"


include: "rules/publish.smk"


onstart:
    begin_run()


onsuccess:
    session.end("succeeded")


onerror:
    session.end("failed")


# Jobs of at most minutes (dedup: three minutes for 10 million clips). On a cluster they run beside Snakemake, without
# waiting in a queue. So do jobs that need the network.
localrules:
    all,
    preflight,
    dedup,
    rank,
    fetch,


# A repository is listed where the network is.
if is_fetched(config):

    localrules:
        source,

    # In a bucket, the tables that were fetched with the listing are on this machine alone.
    if not backend.shares_files:

        localrules:
            manifest,


# Every file that is kept is a target: see speechmill/runs/inputs.py.
rule all:
    default_target: True
    input:
        [run_file(path) for path in SINGLE_FILES],
        batch_files(*kept_files(config, target)),
        run_file(target.goal),
