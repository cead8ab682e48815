# What a person looks at and what a program reads, over all batches. Fails if the states do not balance.


rule report:
    input:
        batches=run_file("manifest/batches.tsv"),
        ranked=run_file("ranking/ranked.tsv"),
        enhanced=shards_to_read(),
        profile=run_file("ranking/profile.json"),
        source=run_file("source.json"),
        preflight=run_file("preflight.json"),
    output:
        page=report(
            run_file("report/report.html"),
            caption="../docs/captions/report.rst",
            category="Quality",
            labels={"dataset": config["dataset"], "what": "quality report"},
        ),
        summary=report(
            run_file("report/summary.json"),
            caption="../docs/captions/summary.rst",
            category="Quality",
            labels={"dataset": config["dataset"], "what": "summary"},
        ),
        ranking=run_file("report/ranking.parquet"),
        advice=run_file("ranking/advice.json"),
        plots=report(
            directory(run_file("report/plots")),
            patterns=["{chart}.svg"],
            caption="../docs/captions/plots.rst",
            category="Quality",
            subcategory="Charts",
            labels={"dataset": config["dataset"], "what": "{chart}"},
        ),
    log:
        log_file("report"),
    conda:
        "../envs/speechmill.yaml"
    resources:
        **backend.resources(),
    params:
        version=versions.REPORT,
        settings=config["report"],
        deciding=deciding_settings(config),  # the summary has them
        without_batches=config["without_batches"],
    script:
        "../scripts/report.py"
