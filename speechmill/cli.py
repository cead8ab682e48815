"""The `speechmill` command: start, watch and stop runs, and see what came of them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from speechmill import remote
from speechmill.errors import SpeechmillError
from speechmill.export import FORMATS, SHARD_BYTES, export
from speechmill.files import read_json


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = remote.main(given) if remote.is_meant(given) else _here(given)
        sys.stdout.flush()
        return status
    except SpeechmillError as error:
        print(f"speechmill: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # piped into head, for example
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _here(given: list[str]) -> int:
    end = given.index("--") if "--" in given else len(given)
    options = _parser().parse_args(given[:end])
    if end < len(given) and options.command not in ("run", "remove", "serve"):
        _parser().error("-- and arguments of snakemake go with run, remove and serve alone")
    if options.command == "remove" and not options.clip and not options.speaker:
        _parser().error("remove needs --clip or --speaker")
    if options.command == "alerts" and not options.run and not options.test:
        _parser().error("alerts needs the folder of a run, or --test")
    if options.command == "rerank" and options.background and not options.publish:
        _parser().error("--background goes with --publish")
    if options.command == "metrics" and options.every is not None and not (options.textfile and options.every > 0):
        _parser().error("--every takes seconds above 0 and goes with --textfile")
    return _call(options, given[end + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="speechmill", description=__doc__, epilog=remote.HINT)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    started = argparse.ArgumentParser(add_help=False)
    started.add_argument("--background", action="store_true", help="go on without this terminal")
    begun = argparse.ArgumentParser(add_help=False)
    begun.add_argument("dataset", help="a file of config/datasets/ without .yaml")
    begun.add_argument("--profile", default="slurm", help="slurm (default), local, or the path of a profile")
    begun.add_argument("--directory", type=Path, default=Path(), help="working directory (default: this one)")
    begun.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="settings, as for snakemake")
    begun.add_argument("--poll-seconds", type=float, default=15, help="between two looks at Slurm (default: 15)")
    begun.add_argument(
        "--stall-seconds", type=float, default=600, help="without any work until a restart (default: 600)"
    )
    after = "Arguments after -- go to snakemake."

    commands.add_parser(
        "run", parents=[begun, started], help="run the workflow on a data set and look after it", epilog=after
    )
    remove = commands.add_parser(
        "remove", parents=[begun, started], help="publish a version without certain clips or speakers", epilog=after
    )
    remove.add_argument("--clip", nargs="+", default=[], metavar="ID", help="id or source_id of a clip")
    remove.add_argument("--speaker", nargs="+", default=[], metavar="ID", help="speaker_id: all clips of a speaker")
    remove.add_argument("--later", action="store_true", help="note it, and leave the publishing to the next run")

    resume = commands.add_parser(
        "resume", parents=[started], help="go on with a run whose Snakemake died or was stopped"
    )
    resume.add_argument(
        "--cancel", action="store_true", help="cancel its Slurm jobs that still run, instead of waiting"
    )
    drain = commands.add_parser("drain", help="begin nothing new; running jobs end")
    cancel = commands.add_parser("cancel", help="end a run now, with every job of it")
    status = commands.add_parser("status", help="how far a run is, what runs, what failed")
    how = status.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="keep it up to date while the run is at work")
    how.add_argument("--json", action="store_true", help="for programs: all that is known, with every job")
    summary = commands.add_parser("summary", help="a short summary of a finished run")
    logs = commands.add_parser("logs", help="what the logs of a run say, or those of one batch or stage")
    logs.add_argument("--problems", action="store_true", help="warnings and errors alone, with clip and file")
    logs.add_argument("--tail", type=int, metavar="N", help="the last N lines of each log")
    logs.add_argument("--json", action="store_true", help="one JSON object per line")
    alerts = commands.add_parser("alerts", help="what was told of a run, what still waits, and whether channels work")
    alerts.add_argument("--test", action="store_true", help="send a test message through every channel")
    alerts.add_argument("run", nargs="?", type=Path, metavar="RUN", help="folder of the run, such as results/demo")
    _add_plan(commands)
    _add_export(commands)
    _add_compare(commands)
    _add_rerank(commands, started)
    _add_audit(commands)
    _add_metrics(commands)
    _add_serve(commands)
    supervise = commands.add_parser("supervise")  # what --background starts
    for command in (resume, drain, cancel, status, summary, logs, supervise):
        command.add_argument("run", type=Path, help="folder of the run, such as results/demo")
    logs.add_argument(
        "name", nargs="?", metavar="NAME", help="a batch, a stage of the whole run, or a source file's key"
    )
    return parser


def _add_plan(commands: Any) -> None:
    command = commands.add_parser("plan", help="what a run will take: hours, GPU-hours, disk, upload; begins nothing")
    command.add_argument("dataset", help="a file of config/datasets/ without .yaml")
    command.add_argument("--profile", default="slurm", help="slurm (default), local, or the path of a profile")
    command.add_argument("--directory", type=Path, default=Path(), help="working directory (default: this one)")
    command.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="settings, as for snakemake")
    command.add_argument(
        "--history", nargs="+", type=Path, metavar="RUN", help="earlier runs to measure by (default: those beside it)"
    )
    command.add_argument("--json", action="store_true", help="for programs")


def _add_export(commands: Any) -> None:
    command = commands.add_parser("export", help="the accepted clips of a finished run in another form")
    command.add_argument(
        "--data-set", type=Path, metavar="PATH", help="instead of RUN: a published data set, or a copy"
    )
    command.add_argument("--shard-bytes", type=int, default=SHARD_BYTES, help="of a tar file, about (default: 10^9)")
    command.add_argument("form", choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS))
    command.add_argument("run", nargs="?", type=Path, metavar="RUN", help="folder of the run, such as results/demo")
    command.add_argument("dest", type=Path, metavar="DEST", help="a folder that is empty or not there yet")


def _add_compare(commands: Any) -> None:
    command = commands.add_parser("compare", help="what changed between two finished runs")
    command.add_argument("before", type=Path, metavar="RUN", help="folder of a run, such as results/demo")
    command.add_argument("after", type=Path, metavar="RUN", help="folder of the run that is held against it")
    command.add_argument("--json", action="store_true", help="for programs")


def _add_audit(commands: Any) -> None:
    command = commands.add_parser("audit", help="what people heard against what the ranking decided")
    command.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, such as results/demo")
    command.add_argument("sheets", nargs="+", type=Path, metavar="SHEET", help="saved from the report's page")
    command.add_argument("--json", action="store_true", help="for programs")


def _add_rerank(commands: Any, started: argparse.ArgumentParser) -> None:
    command = commands.add_parser(
        "rerank", parents=[started], help="what another profile, threshold or weights would change, without audio"
    )
    command.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, such as results/demo")
    command.add_argument("--profile", metavar="NAME|PATH", help="ranking profile (default: as configured)")
    command.add_argument("--threshold", type=float, metavar="T", help="closeness from which a clip is accepted, 0 to 1")
    command.add_argument(
        "--weights", nargs="+", default=[], metavar="GROUP=W", help="of groups, in place of the profile's"
    )
    command.add_argument("--json", action="store_true", help="for programs")
    command.add_argument(
        "--publish", action="store_true", help="then do it: rank, report, and publish what has changed"
    )


def _add_metrics(commands: Any) -> None:
    command = commands.add_parser("metrics", help="runs as metrics for Prometheus: printed, in a file, or over HTTP")
    where = command.add_mutually_exclusive_group()
    where.add_argument("--textfile", type=Path, metavar="PATH", help="write them, for node_exporter: a name in .prom")
    where.add_argument(
        "--listen", metavar="[ADDRESS:]PORT", help="answer scrapes until interrupted (ADDRESS: 127.0.0.1)"
    )
    command.add_argument(
        "--every", type=float, metavar="SECONDS", help="write the file again and again while a run is at work"
    )
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, such as results/demo")


def _add_serve(commands: Any) -> None:
    from speechmill.api.settings import add_options

    command = commands.add_parser("serve", help="the REST API: start, follow and end runs over HTTP")
    add_options(command)


def _call(options: argparse.Namespace, extra: list[str]) -> int:
    from speechmill import runs
    from speechmill.supervise import Supervisor

    if options.command == "export":
        print(_export(options.form, options.run, options.data_set, options.dest, options.shard_bytes))
        return 0
    if options.command == "alerts":
        from speechmill.monitor.alerts import alerts_text, try_channels

        if options.run:
            print(alerts_text(options.run))
        return try_channels() if options.test else 0
    if options.command == "compare":
        from speechmill.compare import compare
        from speechmill.comparison_text import comparison_text

        found = compare(options.before, options.after)
        print(json.dumps(found, indent=2) if options.json else comparison_text(found))
        return 0
    if options.command == "audit":
        from speechmill.audit.audit import audit
        from speechmill.audit.text import audit_text

        judged = audit(options.run, options.sheets)
        print(json.dumps(judged, indent=2) if options.json else audit_text(judged))
        return 0
    if options.command == "rerank":
        return _rerank(options)
    if options.command == "metrics":
        return _metrics(options)
    if options.command == "serve":
        return _serve(options, extra)
    if options.command == "plan":
        _plan(options)
        return 0
    if options.command in ("run", "remove"):
        times = {"poll_seconds": options.poll_seconds, "stall_seconds": options.stall_seconds}
        plan = runs.make_plan(options.dataset, options.profile, options.directory, options.config, extra, **times)
        if options.command == "remove" and not _remove(Path(plan.run_dir), options):
            return 0
        return runs.start(plan, options.background)
    if options.command == "resume":
        return runs.resume(options.run, options.cancel, options.background)
    if options.command in ("drain", "cancel"):
        runs.stop(options.run, options.command)
    elif options.command == "supervise":
        return Supervisor(runs.read_plan(options.run)).run()
    elif options.command == "status":
        from speechmill.status import show, status_json

        if options.json:
            print(status_json(options.run))
        else:
            show(options.run, options.watch)
    elif options.command == "logs":
        _print_logs(options)
    else:
        print(summary_text(options.run))
    return 0


def _print_logs(options: argparse.Namespace) -> None:
    from speechmill.joblog import human
    from speechmill.logs import lines_of

    last = None
    for path, line in lines_of(options.run, options.name, options.problems, options.tail):
        if options.json:
            print(json.dumps(line | {"log": str(path)}, ensure_ascii=False))
            continue
        if path != last:
            print(f"== {path}")
        last = path
        print(human(line, color=sys.stdout.isatty()))


def _plan(options: argparse.Namespace) -> None:
    from speechmill.estimate import earlier_runs, estimate, estimate_text
    from speechmill.runs import merged_config

    config = merged_config([f"dataset={options.dataset}", *options.config])
    run_dir = options.directory / config["outdir"] / config["dataset"]
    history = earlier_runs(run_dir) if options.history is None else options.history
    found = estimate(config, run_dir, history, profile=options.profile, directory=options.directory)
    print(json.dumps(found.as_dict(), indent=2) if options.json else estimate_text(found))


def _rerank(options: argparse.Namespace) -> int:
    from speechmill import runs
    from speechmill.rerank import preview, publish_plan, read_weights
    from speechmill.rerank_text import preview_text

    found = preview(options.run, options.profile, options.threshold, read_weights(options.weights))
    plan = publish_plan(options.run, found) if options.publish else None
    print(json.dumps(found, indent=2) if options.json else preview_text(found), flush=True)
    return runs.start(plan, options.background) if plan else 0


def _metrics(options: argparse.Namespace) -> int:
    """Exit status 1: a run could not be read."""
    from speechmill.monitor import prometheus

    if options.listen is not None:
        prometheus.serve(prometheus.RunCollector(options.runs), *prometheus.listen_address(options.listen))
        return 0
    collector = prometheus.RunCollector(options.runs, keep_seconds=0)
    if options.textfile:
        prometheus.write_textfile(collector, options.textfile, options.every)
    else:
        print(prometheus.exposition(collector), end="")
    return 1 if collector.troubles else 0


def _serve(options: argparse.Namespace, extra: list[str]) -> int:
    try:
        from speechmill.api.serve import serve
    except ImportError as error:
        raise SpeechmillError(f"serve needs more packages: pip install 'speechmill[api]' ({error})") from error
    return serve(options, extra)


def _remove(run_dir: Path, options: argparse.Namespace) -> bool:
    """Put clips and speakers on the list; whether a version without them is to be published now."""
    from speechmill.removal import add_removals, find_clips

    removals, count = find_clips(run_dir, options.clip, options.speaker)
    changed = add_removals(run_dir, removals)
    print(f"{run_dir}: {count} clips {'are' if changed else 'were already'} on the list of what is removed")
    return not options.later


def _export(form: str, run: Path | None, data_set: Path | None, dest: Path, shard_bytes: int) -> str:
    from speechmill.export.rows import of_data_set, of_run

    if run and not data_set:
        origin = of_run(run)
    elif data_set and not run:
        origin = of_data_set(data_set)
    else:
        raise SpeechmillError("name the folder of a run, or a data set with --data-set, and then where to")
    done = export(form, origin, dest, shard_bytes)
    return f"{form}: {done.clips} clips, {done.seconds / 3600:.2f} h, {done.files} files in {dest}"


def summary_text(run: Path) -> str:
    """Clips and hours by state, the most frequent reasons, and where to look.

    Raises:
        SpeechmillError: the run has no summary yet.
    """
    try:
        summary: dict[str, Any] = read_json(run / "report" / "summary.json")
    except (OSError, ValueError) as error:
        raise SpeechmillError(
            f"{run}: no finished run here (report/summary.json is missing); start it first"
        ) from error
    clips, hours = summary["clips"], summary["hours"]
    lines = [f"{summary['dataset']}: {clips['input']} clips, {hours['input']:.2f} h"]
    for state in ("accepted", "rejected", "errored", "duplicate"):
        share = clips[state] / clips["input"] if clips["input"] else 0.0
        extra = f"  {hours['accepted']:.2f} h" if state == "accepted" else ""
        lines.append(f"  {state:<10}{clips[state]:>9}{share:>8.1%}{extra}")
    for title, counts in (("rejected by", summary["rejected_by"]), ("errored by", summary["errored_by"])):
        if counts:
            top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]
            lines.append(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in top))
    lines.append(f"report:    {(run / 'report' / 'report.html').resolve()}")
    sentinel = run / "published" / "UPLOADED.json"
    if sentinel.is_file():
        target = read_json(sentinel)
        on_hub = target["kind"] == "hub"
        where = f"{target['target']}, tag {target['tag']}" if on_hub else Path(target["target"]).resolve()
        lines.append(f"published: {where}")
    return "\n".join(lines)
