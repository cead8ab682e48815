# speechmill: configuration, validation, includes and targets. The stages are in rules/.
import sys

from snakemake.utils import min_version

min_version("9.19")

sys.path.insert(0, workflow.basedir)


include: "rules/common.smk"


configfile: f"{workflow.basedir}/config/config.yaml"
configfile: dataset_config()


check_config()


include: "rules/ingest.smk"
include: "rules/enhance.smk"
include: "rules/score.smk"
include: "rules/rank.smk"
include: "rules/report.smk"
include: "rules/publish.smk"


onstart:
    begin_run()


onsuccess:
    end_run("succeeded")


onerror:
    end_run("failed")


# Seconds of work each (near_duplicates: two minutes for 10 million clips): on a cluster they run beside Snakemake and
# wait in no queue. So does what needs the network.
localrules:
    all,
    preflight,
    duplicates,
    near_duplicates,
    profile,
    rank,
    advice,
    fetch,


# A repository is listed where the network is.
if is_fetched():

    localrules:
        source,

    # In a bucket, the tables that were fetched with the listing are on this machine alone.
    if in_bucket():

        localrules:
            manifest,


# So is the Hub.
if on_hub():

    localrules:
        send,
        audio_again,
        publish,


# Every file that is kept is named here. What stands between others alone, Snakemake takes for done while those are
# there: a job that fails when it is repeated (its old output is removed first) would never be tried again.
rule all:
    default_target: True
    input:
        [run_file(path) for path in SINGLE_FILES],
        batch_files(*kept_files()),
        [] if config["publish"]["kind"] == "none" else run_file("published/UPLOADED.json"),
