# Accepted clips and every clip's score to the target; the sentinel last.


# On the Hub the shards of a batch are sent as soon as it is scored, while others are being enhanced. Here, where the
# network is; what a second attempt could mend, it waits for itself: no retries.
rule send:
    input:
        enhanced=run_file("enhanced/{batch}.parquet"),
        ledger=run_file("ledger/{batch}.enhance.parquet"),
        scores=run_file("scores/{batch}.parquet"),
        # A new threshold, repository or version is the last job's, which sends what has changed: this one would ask for
        # enhanced shards that may be gone.
        profile=ancient(run_file("ranking/profile.json")),
    output:
        sent=run_file("published/sent/{batch}.json"),
    log:
        log_file("send/{batch}"),
    retries: 0
    conda:
        "../envs/speechmill.yaml"
    resources:
        upload_slots=1,
    script:
        "../scripts/send.py"


# Where enhanced shards are gone, and clips come in that were not published before: which batches are enhanced again.
# Whatever repeats the publication repeats this first: the last answer is no longer true.
checkpoint audio_again:
    input:
        rankings=batch_files("ranking/{batch}.parquet"),
        scores=batch_files("scores/{batch}.parquet"),
        ledgers=batch_files("ledger/{batch}.enhance.parquet") if in_bucket() else [],
        profile=run_file("ranking/profile.json"),
        sent=batch_files("published/sent/{batch}.json"),
        summary=run_file("report/summary.json"),
        source=run_file("source.json"),
    output:
        batches=run_file("published/again.txt"),
    log:
        log_file("audio_again"),
    conda:
        "../envs/speechmill.yaml"
    params:
        version=versions.PUBLISH,
        settings=config["publish"],
    script:
        "../scripts/audio_again.py"


rule enhance_again:
    input:
        batch=run_file("manifest/{batch}.json"),
        preflight=ancient(run_file("preflight.json")),
        fetched=fetched_file,
    output:
        enhanced=temp(run_file("restored/{batch}.parquet")),
    log:
        log_file("enhance_again/{batch}"),
    conda:
        "../envs/speechmill.yaml"
    threads: 2
    resources:
        **worker(),
    params:
        version=versions.ENHANCE,
    script:
        "../scripts/enhance.py"


rule publish:
    input:
        rankings=batch_files("ranking/{batch}.parquet"),
        scores=batch_files("scores/{batch}.parquet"),
        ledgers=batch_files("ledger/{batch}.enhance.parquet") if in_bucket() else [],
        enhanced=shards_to_read(),
        again=shards_again,
        sent=batch_files("published/sent/{batch}.json") if sends_ahead() else [],
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
