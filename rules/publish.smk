# Accepted clips and every clip's score to the target; the sentinel last.


rule publish:
    input:
        rankings=batch_files("ranking/{batch}.parquet"),
        enhanced=batch_files("enhanced/{batch}.parquet"),
        profile=run_file("ranking/profile.json"),
        summary=run_file("report/summary.json"),
        source=run_file("source.json"),
    output:
        sentinel=run_file("published/UPLOADED.json"),
    log:
        log_file("publish"),
    conda:
        "../envs/speechmill.yaml"
    resources:
        **job(),
        upload_slots=1,
    params:
        version=versions.PUBLISH,
        settings=config["publish"],
    script:
        "../scripts/publish.py"
