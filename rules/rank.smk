# From scores to decisions. Needs no audio and no GPU: a new profile or threshold repeats only `rank` and what follows.


rule dedup:
    input:
        ledgers=batch_files("ledger/{batch}.enhance.parquet"),
    output:
        duplicates=run_file("ledger/duplicates.parquet"),
        held_out=run_file("ledger/held_out.parquet"),
        near_duplicates=run_file("ledger/near_duplicates.parquet"),
    log:
        log_file("dedup"),
    conda:
        "../envs/speechmill.yaml"
    params:
        version=versions.DEDUP,
        held_out=config["held_out"],
        compare_with=config["compare_with"],
        others=state_of_others([*(entry["path"] for entry in config["held_out"]), *config["compare_with"]]),
    script:
        "../scripts/dedup.py"


# The ranking tables of the batches are not declared outputs: Snakemake would delete them before the job, and published
# shards keep their names only as long as these files do not change. ranked.tsv is written after them.
rule rank:
    input:
        ledgers=batch_files("ledger/{batch}.enhance.parquet"),
        scores=batch_files("scores/{batch}.parquet"),
        duplicates=run_file("ledger/duplicates.parquet"),
        held_out=run_file("ledger/held_out.parquet"),
        near_duplicates=run_file("ledger/near_duplicates.parquet"),
        preflight=run_file("preflight.json"),
        removed=removal_list(),
        damaged=rank_again_if_damaged,
    output:
        profile=run_file("ranking/profile.json"),
        ranked=run_file("ranking/ranked.tsv"),
    log:
        log_file("rank"),
    conda:
        "../envs/speechmill.yaml"
    threads: 4
    params:
        version=(versions.RANK, versions.RANKING_TABLE),
        profile=ranking_profile,
        threshold=config["rank"]["threshold"],
        weights=config["rank"]["weights"],
    script:
        "../scripts/rank.py"
