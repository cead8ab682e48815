"""What a dead supervisor left, found by its environment."""

import os
import subprocess
import sys
from pathlib import Path

from speechmill.runs import leftovers
from speechmill.runs.leftovers import MARK

from ..patience import seconds


def test_the_processes_of_a_run_are_found_whoever_their_parents_are():
    environment = os.environ | {MARK: "/results/a"}
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env=environment, start_new_session=True
    )
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env=os.environ | {MARK: "/results/b"},
    )
    of_slurm = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env=environment | {"SLURM_JOB_ID": "77"}
    )
    try:
        assert leftovers.of_run(Path("/results/a")) == [child.pid]
        assert leftovers.kill(Path("/results/a")) == []
        assert child.wait(seconds(60)) == -9
        assert (other.poll(), of_slurm.poll()) == (None, None)
    finally:
        for each in (child, other, of_slurm):
            each.kill()
            each.wait()
