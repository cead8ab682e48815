# Publish the accepted clips and the scores of all clips. The sentinel is written last.


rule publish:
    input:
        **published_after,
        ranked=run_file("ranking/ranked.tsv"),
        scores=batch_files("scores/{batch}.parquet"),
        ledgers=batch_files("ledger/{batch}.enhance.parquet") if not backend.shares_files else [],
        enhanced=shards_to_read(),
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
        **backend.resources(),
        upload_slots=1,
    params:
        version=versions.PUBLISH,
        settings=config["publish"],
        described=sections("source", "enhance", "keep_enhanced"),
    script:
        "../scripts/publish.py"
