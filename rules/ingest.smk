# From a source to batches: check the requirements, list the source, cut it into batches, download its files.


rule preflight:
    input:
        name_jobs,
    output:
        report=run_file("preflight.json"),
    log:
        log_file("preflight"),
    conda:
        "../envs/speechmill.yaml"
    params:
        settings=sections("source", "publish", "keep_enhanced", "enhance", "score", "held_out", "compare_with"),
        version=versions.SCORE,
    script:
        "../scripts/preflight.py"


rule source:
    input:
        # Only for the order: the source does not depend on the report.
        preflight=ancient(run_file("preflight.json")),
    output:
        source=run_file("source.json"),
    log:
        log_file("source"),
    conda:
        "../envs/speechmill.yaml"
    resources:
        **backend.resources(),
    params:
        source=config["source"],
        fingerprint=source_state,
    script:
        "../scripts/source.py"


# Downloads a file of a repository when the quota (download.max_gb) allows; it is deleted after its last batch. Runs
# locally, because nodes may have no network, and needs no core while it waits. No retries: the job itself waits for
# everything that another attempt could fix.
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


# The only checkpoint of every run. {batch}.json and {batch}.parquet are not declared as outputs: Snakemake would delete
# them before a new listing, including those of unchanged batches.
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
        **backend.resources(),
    params:
        source=config["source"],
        batch_size=config["batch_size"],
    script:
        "../scripts/manifest.py"
