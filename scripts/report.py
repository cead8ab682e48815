from pathlib import Path

from speechmill.config import job_settings
from speechmill.runlog.job_context import logged, remove_empty_logs, stage_timing
from speechmill.storage.files import read_json, write_json
from speechmill.storage.run_folder import run_folder

with (
    logged(snakemake),
    run_folder().keeping(Path(snakemake.output.summary).parent, lambda name: name == "history.jsonl"),
):
    from speechmill.ranking.advice import advise
    from speechmill.ranking.index import ranking_files, read_index
    from speechmill.ranking.profile import FrozenProfile
    from speechmill.ranking.states import check_manifest
    from speechmill.report.history import record_report
    from speechmill.report.page import make_report
    from speechmill.sources.manifest import with_notes
    from speechmill.tables.batches import read_batches
    from speechmill.versions import package_versions

    config = job_settings(snakemake, **snakemake.params.deciding, report=snakemake.params.settings)
    preflight = read_json(snakemake.input.preflight)
    run = Path(snakemake.output.summary).parents[1]
    remove_empty_logs(run / "logs")
    batches = Path(snakemake.input.batches)
    index = Path(snakemake.input.ranked)
    rankings = ranking_files(index)
    profile = FrozenProfile.from_json(read_json(snakemake.input.profile))
    advice = advise(rankings.values(), profile)
    write_json(snakemake.output.advice, advice)
    ranked = {row.batch: row.clips for row in read_index(index.read_text(encoding="utf-8"))}
    # If the clips of a batch are only counted when it is read, its ranking has as many rows as its ledger.
    clips = {
        row["batch"]: int(row["clips"]) if row["clips"] else ranked.get(row["batch"], 0)
        for row in read_batches(batches)
    }
    summary = make_report(
        list(rankings.values()),
        [shard for batch in rankings if (shard := run / "enhanced" / f"{batch}.parquet").exists()],
        profile,
        advice,
        with_notes(read_json(snakemake.input.source), batches.parent),
        config,
        package_versions() | preflight["models"],
        preflight["skipped_metrics"],
        stage_timing(run / "logs"),
        Path(snakemake.output.page),
        Path(snakemake.output.summary),
        Path(snakemake.output.ranking),
        Path(snakemake.output.plots),
        {batch: count for batch, count in clips.items() if batch in snakemake.params.without_batches},
    )
    check_manifest(sum(clips.values()), summary["clips"])
    record_report(run, summary)
