"""Commands that show a run: status, logs, summary, alerts, metrics."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from speechmill.cli.options import add_json, add_run_dir
from speechmill.errors import SpeechmillError
from speechmill.storage.files import read_json


def add(commands: Any) -> None:
    command = commands.add_parser("status", help="progress of a run, its running jobs and its failures")
    how = command.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="update until the run ends")
    add_json(how, "print everything that is known as JSON, with every job")
    add_run_dir(command)
    command.set_defaults(handler=_status)

    command = commands.add_parser("logs", help="the logs of a run, or of one batch or stage")
    command.add_argument("--problems", action="store_true", help="only warnings and errors, with clip and file")
    command.add_argument("--tail", type=int, metavar="N", help="the last N lines of each log")
    add_json(command, "print one JSON object per line")
    add_run_dir(command)
    command.add_argument(
        "name", nargs="?", metavar="NAME", help="a batch, a stage of the whole run, or the key of a source file"
    )
    command.set_defaults(handler=_logs)

    command = commands.add_parser("summary", help="a short summary of a finished run")
    add_run_dir(command, finished=True)
    command.set_defaults(handler=_summary)

    command = commands.add_parser("alerts", help="alerts of a run, sent and pending; test the alert channels")
    command.add_argument("--test", action="store_true", help="send a test message through every channel")
    command.add_argument("run", nargs="?", type=Path, metavar="RUN", help="folder of the run, such as results/demo")
    command.set_defaults(handler=_alerts)

    command = commands.add_parser("metrics", help="Prometheus metrics of runs: printed, in a file, or over HTTP")
    where = command.add_mutually_exclusive_group()
    where.add_argument("--textfile", type=Path, metavar="PATH", help="write a file for node_exporter (*.prom)")
    where.add_argument(
        "--listen", metavar="[ADDRESS:]PORT", help="answer scrapes until interrupted (default ADDRESS: 127.0.0.1)"
    )
    command.add_argument(
        "--every", type=float, metavar="SECONDS", help="write the file again at this interval until the runs end"
    )
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, such as results/demo")
    command.set_defaults(handler=_metrics)


def _status(options: argparse.Namespace) -> int:
    from speechmill.monitor.status import show, status_json

    if options.json:
        print(status_json(options.run))
    else:
        show(options.run, options.watch)
    return 0


def _logs(options: argparse.Namespace) -> int:
    from speechmill.runlog.joblog import human
    from speechmill.runlog.log_reader import lines_of

    last = None
    for path, line in lines_of(options.run, options.name, options.problems, options.tail):
        if options.json:
            print(json.dumps(line | {"log": str(path)}, ensure_ascii=False))
            continue
        if path != last:
            print(f"== {path}")
        last = path
        print(human(line, color=sys.stdout.isatty()))
    return 0


def _alerts(options: argparse.Namespace) -> int:
    if not options.run and not options.test:
        raise argparse.ArgumentError(None, "alerts needs the folder of a run, or --test")
    from speechmill.monitor.alerts import alerts_text, try_channels

    if options.run:
        print(alerts_text(options.run))
    return try_channels() if options.test else 0


def _metrics(options: argparse.Namespace) -> int:
    """Exit status 1: a run could not be read."""
    if options.every is not None and not (options.textfile and options.every > 0):
        raise argparse.ArgumentError(None, "--every needs --textfile and a number of seconds above 0")
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


def _summary(options: argparse.Namespace) -> int:
    print(summary_text(options.run))
    return 0


def summary_text(run: Path) -> str:
    """Clips and hours by state, the most frequent reasons, and the paths of the report and the published data set.

    Raises:
        SpeechmillError: the run has no summary yet.
    """
    try:
        summary: dict[str, Any] = read_json(run / "report" / "summary.json")
    except (OSError, ValueError) as error:
        raise SpeechmillError(
            f"{run}: no finished run here (report/summary.json is missing or damaged); "
            "start it with speechmill run, or check it with speechmill status"
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
        from speechmill.publish.target import published_by

        published = read_json(sentinel)
        lines.append(f"published: {published_by(published).address(published)}")
    return "\n".join(lines)
