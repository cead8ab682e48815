"""The estimate of a second run from the attempt log of a first, and what the run then takes."""

import json
import math
import shutil
from datetime import datetime

import numpy as np
import soundfile
import yaml

from speechmill.config import validate_config
from speechmill.estimate.run_estimate import estimate
from speechmill.estimate.throughput import Past
from speechmill.runlog.attempts import FILE, read_attempts

from ..runs import BATCH_SIZE, ROOT, SPEECH, Run

FIRST = (6, 25, 40, 15)  # seconds of each clip of a batch
SECOND = (*FIRST, 50, 12, 33, 20)
HEAVY = ("enhance", "score")


def make_speech(folder, lengths):
    """A batch of clips for each length, in the order of their names: prompts in a row, in noise."""
    folder.mkdir(parents=True)
    prompts = [soundfile.read(path, dtype="float32") for path in sorted(SPEECH.rglob("*.flac"))]
    rate = prompts[0][1]
    speech = np.concatenate([samples for samples, _ in prompts])
    random = np.random.default_rng(11)
    for number, seconds in enumerate(np.repeat(lengths, BATCH_SIZE)):
        samples = np.roll(speech, -number * 3 * rate)[: int(seconds * rate)]
        noise = random.normal(0, 0.1 * samples.std(), len(samples)).astype(np.float32)
        soundfile.write(folder / f"clip {number:03d}.flac", samples + noise, rate, subtype="PCM_16")


def sums(run_dir):
    """Seconds and CPU seconds of all heavy jobs."""
    found = [job for stage in HEAVY for job in Past(run_dir).stage(stage)]
    return (math.fsum(job[name] for job in found) for name in ("seconds", "cpu_seconds"))


def in_cpu_seconds(run_dir, target):
    """The same run, as if each job had taken its CPU seconds."""
    shutil.copytree(run_dir, target)
    lines = [line | {"seconds": line.get("cpu_seconds")} for line in read_attempts(run_dir)]
    (target / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return target


def test_the_estimate_of_a_second_run_is_near_what_it_takes(tmp_path):
    """How much busier this machine has become meanwhile, no estimate knows: the seconds of a CPU second say it."""
    first, second = Run(tmp_path / "first"), Run(tmp_path / "second")
    make_speech(first.directory / "corpus", FIRST)
    make_speech(second.directory / "corpus", SECOND)
    config = yaml.safe_load((ROOT / "config" / "datasets" / "demo.yaml").read_text())
    config |= yaml.safe_load((second.directory / "config.yaml").read_text())
    config = validate_config(config | {"source": {"kind": "folder", "path": "corpus"}}, ROOT / "config")
    first.start()
    about = {"profile": "local", "directory": second.directory}
    found = estimate(config, second.results, [first.results], **about)
    of_cpu = estimate(config, second.results, [in_cpu_seconds(first.results, tmp_path / "cpu")], **about)
    second.start()

    assert (found.clips.value, found.batches.value) == (BATCH_SIZE * len(SECOND), len(SECOND))
    assert math.isclose(found.audio_hours.value, BATCH_SIZE * sum(SECOND) / 3600, rel_tol=1e-3)
    assert all(stage.is_measured for stage in found.stages)
    (then, cpu_then), (now, cpu_now) = sums(first.results), sums(second.results)
    busier = (now / cpu_now) / (then / cpu_then)
    began, ended = (line["time"] for line in read_attempts(second.results) if line["stage"] == "run")
    clock = (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()
    ratios = {
        "CPU seconds": sum(stage.job_seconds for stage in of_cpu.stages) / cpu_now,
        "job seconds": sum(stage.job_seconds for stage in found.stages) * busier / now,
        "clock": found.wall_hours.value * 3600 * busier / clock,
    }
    print(ratios, f"busier {busier:.3f}", f"unadjusted {sum(stage.job_seconds for stage in found.stages) / now:.3f}")
    assert 0.7 < ratios["CPU seconds"] < 1.3
    # Jobs of some seconds on a busy machine take up to twice as long as their neighbours: 1 in 1,000 such runs is 1.45.
    assert 0.6 < ratios["job seconds"] < 1.6
    assert 0.5 < ratios["clock"] < 2
