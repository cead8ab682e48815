"""Commands that work with the results of a run: compare, rerank, audit, export, remove."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from speechmill.cli.options import add_background, add_json, add_run_dir, add_start
from speechmill.cli.run import plan_of
from speechmill.errors import SpeechmillError
from speechmill.export import FORMATS, SHARD_BYTES, export


def add(commands: Any) -> None:
    command = commands.add_parser("compare", help="what changed between two finished runs")
    command.add_argument("before", type=Path, metavar="RUN", help="folder of a run, such as results/demo")
    command.add_argument("after", type=Path, metavar="RUN", help="folder of the run to compare with it")
    add_json(command)
    command.set_defaults(handler=_compare)

    command = commands.add_parser("rerank", help="preview another profile, threshold or weights, without audio")
    add_background(command)
    add_run_dir(command, finished=True)
    command.add_argument("--profile", metavar="NAME|PATH", help="ranking profile (default: as configured)")
    command.add_argument("--threshold", type=float, metavar="T", help="closeness that a clip needs, from 0 to 1")
    command.add_argument(
        "--weights", nargs="+", default=[], metavar="GROUP=W", help="weights of groups that replace the profile's"
    )
    add_json(command)
    command.add_argument(
        "--publish", action="store_true", help="then apply it: rank, report, and publish what has changed"
    )
    command.set_defaults(handler=_rerank)

    command = commands.add_parser("audit", help="compare what listeners heard with what the ranking decided")
    add_run_dir(command, finished=True)
    command.add_argument("sheets", nargs="+", type=Path, metavar="SHEET", help="answers saved from the report page")
    add_json(command)
    command.set_defaults(handler=_audit)

    command = commands.add_parser("export", help="the accepted clips of a finished run in another format")
    command.add_argument(
        "--data-set", type=Path, metavar="PATH", help="a published data set, or a copy of one, instead of RUN"
    )
    command.add_argument(
        "--shard-bytes", type=int, default=SHARD_BYTES, help="approximate size of a tar file (default: 10^9)"
    )
    command.add_argument("form", choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS))
    command.add_argument("run", nargs="?", type=Path, metavar="RUN", help="folder of the run, such as results/demo")
    command.add_argument("dest", type=Path, metavar="DEST", help="a folder that is empty or does not exist")
    command.set_defaults(handler=_export)

    command = commands.add_parser("remove", help="publish a version without certain clips or speakers")
    add_start(command)
    command.add_argument("--clip", nargs="+", default=[], metavar="ID", help="id or source_id of a clip")
    command.add_argument("--speaker", nargs="+", default=[], metavar="ID", help="speaker_id: all clips of a speaker")
    command.add_argument("--later", action="store_true", help="record the removal; the next run publishes it")
    command.set_defaults(handler=_remove)


def _compare(options: argparse.Namespace) -> int:
    from speechmill.analysis.compare import compare
    from speechmill.analysis.compare_text import comparison_text

    found = compare(options.before, options.after)
    print(json.dumps(found, indent=2) if options.json else comparison_text(found))
    return 0


def _rerank(options: argparse.Namespace) -> int:
    if options.background and not options.publish:
        raise argparse.ArgumentError(None, "--background needs --publish")
    from speechmill.analysis.rerank import preview, publish_plan, read_weights
    from speechmill.analysis.rerank_text import preview_text
    from speechmill.runs import start

    found = preview(options.run, options.profile, options.threshold, read_weights(options.weights))
    plan = publish_plan(options.run, found) if options.publish else None
    print(json.dumps(found, indent=2) if options.json else preview_text(found), flush=True)
    return start.start(plan, options.background) if plan else 0


def _audit(options: argparse.Namespace) -> int:
    from speechmill.audit.results import audit
    from speechmill.audit.results_text import audit_text

    judged = audit(options.run, options.sheets)
    print(json.dumps(judged, indent=2) if options.json else audit_text(judged))
    return 0


def _export(options: argparse.Namespace) -> int:
    from speechmill.export.rows import of_data_set, of_run

    if bool(options.run) == bool(options.data_set):
        raise SpeechmillError("export needs either the folder of a run or --data-set PATH, and then DEST")
    origin = of_run(options.run) if options.run else of_data_set(options.data_set)
    done = export(options.form, origin, options.dest, options.shard_bytes)
    hours = done.seconds / 3600
    print(f"{options.form}: {done.clips} clips, {hours:.2f} h, {done.files} files in {options.dest}")
    return 0


def _remove(options: argparse.Namespace) -> int:
    if not options.clip and not options.speaker:
        raise argparse.ArgumentError(None, "remove needs --clip or --speaker")
    from speechmill.ranking.removals import add_removals, find_clips
    from speechmill.runs import start

    plan = plan_of(options)
    run_dir = Path(plan.run_dir)
    removals, count = find_clips(run_dir, options.clip, options.speaker)
    changed = add_removals(run_dir, removals)
    print(f"{run_dir}: {count} clips {'are' if changed else 'were already'} on the list of removals")
    return 0 if options.later else start.start(plan, options.background)
