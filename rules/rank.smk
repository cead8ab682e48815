# From scores to decisions. Needs no audio and no GPU: a new profile or threshold repeats only this and what follows.


rule duplicates:
    input:
        ledgers=batch_files("ledger/{batch}.enhance.parquet"),
    output:
        duplicates=run_file("ledger/duplicates.parquet"),
        held_out=run_file("ledger/held_out.parquet"),
    log:
        log_file("duplicates"),
    conda:
        "../envs/speechmill.yaml"
    params:
        version=versions.RANK,
        held_out=config["held_out"],
        others=state_of_others(entry["path"] for entry in config["held_out"]),
    script:
        "../scripts/duplicates.py"


rule near_duplicates:
    input:
        ledgers=batch_files("ledger/{batch}.enhance.parquet"),
    output:
        near_duplicates=run_file("ledger/near_duplicates.parquet"),
    log:
        log_file("near_duplicates"),
    conda:
        "../envs/speechmill.yaml"
    params:
        version=versions.RANK,
        compare_with=config["compare_with"],
        others=state_of_others(config["compare_with"]),
    script:
        "../scripts/near_duplicates.py"


rule profile:
    input:
        preflight=run_file("preflight.json"),
        profile=local(ranking_profile()),
        schema=local((CONFIG_DIR / "ranking" / "schema.yaml").as_posix()),
    output:
        profile=run_file("ranking/profile.json"),
    log:
        log_file("profile"),
    conda:
        "../envs/speechmill.yaml"
    params:
        version=versions.RANK,
        threshold=config["rank"]["threshold"],
        weights=config["rank"]["weights"],
    script:
        "../scripts/profile.py"


rule rank:
    input:
        batch=run_file("manifest/{batch}.json"),
        ledger=run_file("ledger/{batch}.enhance.parquet"),
        scores=run_file("scores/{batch}.parquet"),
        duplicates=run_file("ledger/duplicates.parquet"),
        held_out=run_file("ledger/held_out.parquet"),
        near_duplicates=run_file("ledger/near_duplicates.parquet"),
        profile=run_file("ranking/profile.json"),
        removed=removal_list(),
    output:
        ranking=run_file("ranking/{batch}.parquet"),
    log:
        log_file("rank/{batch}"),
    conda:
        "../envs/speechmill.yaml"
    params:
        version=versions.RANK,
    script:
        "../scripts/rank.py"


rule advice:
    input:
        rankings=batch_files("ranking/{batch}.parquet"),
        profile=run_file("ranking/profile.json"),
    output:
        advice=run_file("ranking/advice.json"),
    log:
        log_file("advice"),
    conda:
        "../envs/speechmill.yaml"
    params:
        version=versions.ADVICE,
    script:
        "../scripts/advice.py"
