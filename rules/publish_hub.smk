# Publish to the Hub, in addition to rule publish: send shards while others are enhanced, and restore deleted audio.
# Included only for the Hub. These jobs run locally, because nodes may have no network.


localrules:
    send,
    audio_again,
    publish,


@plain_errors
def restored_shards(wildcards):
    """The batches that have to be enhanced again to be published, after checkpoint audio_again."""
    checkpoints.manifest.get()  # first: otherwise a result from before a change of the manifest would count as current
    cost, *batches = Path(checkpoints.audio_again.get().output.batches).read_text().splitlines()
    if batches:
        session.announce([cost])
    return [run_file(f"restored/{batch}.parquet") for batch in batches]


if target.sends_ahead:
    published_after["sent"] = batch_files("published/sent/{batch}.json")
if target.deletes_audio:
    published_after["again"] = restored_shards


# No retries: the job itself retries everything that another attempt could fix.
rule send:
    input:
        enhanced=run_file("enhanced/{batch}.parquet"),
        ledger=run_file("ledger/{batch}.enhance.parquet"),
        scores=run_file("scores/{batch}.parquet"),
        # After a new profile, repository or version, rule publish sends the changes. Another run of this job would
        # need enhanced shards that may be deleted.
        preflight=ancient(run_file("preflight.json")),
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


# Finds the batches to enhance again: those with clips to publish whose enhanced shards are deleted.
# Re-evaluated before every publication, because the previous answer may be stale.
checkpoint audio_again:
    input:
        ranked=run_file("ranking/ranked.tsv"),
        scores=batch_files("scores/{batch}.parquet"),
        ledgers=batch_files("ledger/{batch}.enhance.parquet") if not backend.shares_files else [],
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
        described=sections("source", "enhance", "keep_enhanced"),
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
        **backend.worker_resources(),
    params:
        version=versions.ENHANCE,
        settings=result_settings(config["enhance"]),
    script:
        "../scripts/enhance.py"
