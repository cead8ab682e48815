# One job per batch: raw clips to an enhanced shard and the ledger of what became of each clip.


rule enhance:
    input:
        batch=run_file("manifest/{batch}.json"),
        preflight=ancient(run_file("preflight.json")),
        fetched=fetched_file,
    output:
        enhanced=audio_shard("enhanced/{batch}.parquet"),
        ledger=run_file("ledger/{batch}.enhance.parquet"),
    log:
        log_file("enhance/{batch}"),
    conda:
        "../envs/speechmill.yaml"
    threads: 2
    resources:
        **backend.worker_resources(),
    params:
        version=versions.ENHANCE,
        settings=result_settings(config["enhance"]),
    script:
        "../scripts/enhance.py"
