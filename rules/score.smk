# One job per batch: the metrics of every enhanced clip.


rule score:
    input:
        enhanced=run_file("enhanced/{batch}.parquet"),
    output:
        scores=run_file("scores/{batch}.parquet"),
    log:
        log_file("score/{batch}"),
    benchmark:
        time_file("score/{batch}")
    conda:
        "../envs/speechmill.yaml"
    threads: 2
    resources:
        gpu=0,
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        batch_seconds=smaller_batches("score"),
    params:
        version=versions.SCORE,
        settings={key: value for key, value in config["score"].items() if key != "batch_seconds"},
    script:
        "../scripts/score.py"
