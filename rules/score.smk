# One job per batch: the metrics of every enhanced clip.


rule score:
    input:
        enhanced=run_file("enhanced/{batch}.parquet"),
        preflight=ancient(run_file("preflight.json")),
    output:
        scores=run_file("scores/{batch}.parquet"),
    log:
        log_file("score/{batch}"),
    conda:
        "../envs/speechmill.yaml"
    threads: 2
    resources:
        **backend.worker_resources(),
    params:
        version=versions.SCORE,
        settings=result_settings(config["score"]),
    script:
        "../scripts/score.py"
