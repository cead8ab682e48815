# From a source to batches: what must be there, what the source holds, which clips make which batch.


rule preflight:
    input:
        slurm_names,
    output:
        report=run_file("preflight.json"),
    log:
        log_file("preflight"),
    conda:
        "../envs/speechmill.yaml"
    params:
        # How jobs are run has no part in what is checked here, and must not have it checked anew.
        config={key: value for key, value in config.items() if key not in HOW_JOBS_RUN},
        config_dir=CONFIG_DIR.as_posix(),
        version=versions.SCORE,
    script:
        "../scripts/preflight.py"


rule source:
    input:
        # Only for the order: the source does not depend on what was checked.
        preflight=ancient(run_file("preflight.json")),
    output:
        source=run_file("source.json"),
    log:
        log_file("source"),
    conda:
        "../envs/speechmill.yaml"
    resources:
        **job(),
    params:
        source=config["source"],
        fingerprint=source_state,
    script:
        "../scripts/source.py"


# A file of a repository, as soon as there is room for it (download.max_gb), deleted after its last batch. Here, where the
# network is. It takes no core while it waits. What a second attempt could mend, it waits for itself: no retries.
rule fetch:
    input:
        source=ancient(run_file("source.json")),
        batches=ancient(run_file("manifest/batches.tsv")),
    output:
        temp(run_file("raw/{file}")),
    log:
        log_file("fetch/{file}"),
    retries: 0
    conda:
        "../envs/speechmill.yaml"
    threads: 0
    resources:
        download_slots=1,
    script:
        "../scripts/fetch.py"


# The one checkpoint. {batch}.json and {batch}.parquet beside batches.tsv are no declared outputs: Snakemake
# would delete them all before a new listing, and with them the batches that did not change.
checkpoint manifest:
    input:
        source=run_file("source.json"),
    output:
        batches=run_file("manifest/batches.tsv"),
    log:
        log_file("manifest"),
    conda:
        "../envs/speechmill.yaml"
    resources:
        **job(),
    params:
        source=config["source"],
        batch_size=config["batch_size"],
    script:
        "../scripts/manifest.py"
