from pathlib import Path

from speechmill.bucket import kept
from speechmill.files import read_json
from speechmill.job import logged, remove_empty_logs, stage_timing

with logged(snakemake), kept(Path(snakemake.output.summary).parent, lambda name: name == "history.jsonl"):
    from speechmill.ledger import check_manifest
    from speechmill.manifest import read_batches, with_notes
    from speechmill.ranking.profile import FrozenProfile
    from speechmill.report.history import remember
    from speechmill.report.page import make_report
    from speechmill.shards import count_rows
    from speechmill.versions import package_versions

    preflight = read_json(snakemake.input.preflight)
    run = Path(snakemake.output.summary).parents[1]
    remove_empty_logs(run / "logs")
    batches = Path(snakemake.input.batches)
    rankings = {Path(path).stem: Path(path) for path in snakemake.input.rankings}
    # Of a batch whose clips were counted when it was read, its ranking has as many as its ledger.
    clips = {
        row["batch"]: int(row["clips"]) if row["clips"] else count_rows(rankings.get(row["batch"]))
        for row in read_batches(batches)
    }
    summary = make_report(
        list(rankings.values()),
        [shard for batch in rankings if (shard := run / "enhanced" / f"{batch}.parquet").exists()],
        FrozenProfile.from_json(read_json(snakemake.input.profile)),
        read_json(snakemake.input.advice),
        with_notes(read_json(snakemake.input.source), batches.parent),
        snakemake.config,
        package_versions() | preflight["models"],
        preflight["skipped_metrics"],
        stage_timing(run / "logs" / "batches"),
        Path(snakemake.output.page),
        Path(snakemake.output.summary),
        Path(snakemake.output.ranking),
        Path(snakemake.output.plots),
        {batch: count for batch, count in clips.items() if batch in snakemake.config["without_batches"]},
    )
    check_manifest(sum(clips.values()), summary["clips"])
    remember(run, summary)
