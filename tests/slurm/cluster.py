"""A real Slurm cluster on this one machine, for the tests and to try profiles/slurm.

    python -m tests.slurm.cluster start | stop | status

munge, MariaDB, slurmdbd, slurmctld and three slurmd nodes with two GPUs each, where a GPU is a character device
that nothing can compute with: jobs hold it, and run on the CPU (`device: cpu`). Needs root on Debian or Ubuntu and

    apt-get install slurmctld slurmd slurm-client munge slurmdbd mariadb-server

Everything stands in STATE, except two files in /etc/slurm: Slurm's commands inside a job look nowhere else, because
the jobstep plugin takes SLURM_CONF from them. A machine that has a cluster already is left alone.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..patience import seconds

STATE = Path("/var/tmp/speechmill-slurm")
ETC = Path("/etc/slurm")
NODES = ("n1", "n2", "n3")
GPUS = 2
ACCOUNT = "speech"
MARK = "# speechmill's test cluster"
PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "squeue": "slurm-client",
    "munged": "munge",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
}

SLURM_CONF = f"""{MARK}
ClusterName=speechmill
SlurmctldHost={{host}}(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={STATE}/munge/socket
CryptoType=crypto/munge
StateSaveLocation={STATE}/ctld
SlurmdSpoolDir={STATE}/%n
SlurmctldPidFile={STATE}/slurmctld.pid
SlurmdPidFile={STATE}/slurmd-%n.pid
SlurmctldLogFile={STATE}/slurmctld.log
SlurmdLogFile={STATE}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
TaskProlog={STATE}/task_prolog
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass={STATE}/munge/socket
AccountingStorageEnforce=associations,limits
AccountingStoreFlags=job_comment
AccountingStorageTRES=gres/gpu
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
ReturnToService=1
SlurmdTimeout=20
KillWait=5
MinJobAge=300
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=100000
{{nodes}}
PartitionName=cpu Nodes=ALL Default=YES MaxTime=2-00:00:00 PriorityTier=1 State=UP
PartitionName=gpu Nodes=ALL MaxTime=2-00:00:00 PriorityTier=1 PreemptMode=CANCEL State=UP
PartitionName=urgent Nodes=ALL PriorityTier=9 PreemptMode=OFF State=UP
"""

SLURMDBD_CONF = f"""{MARK}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=16819
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={STATE}/munge/socket
PidFile={STATE}/slurmdbd.pid
LogFile={STATE}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=16306
StorageUser=slurm
StoragePass={{password}}
StorageLoc=slurm_acct_db
"""


class ClusterError(Exception):
    """The cluster cannot be started; the message says why."""


def missing() -> str | None:
    """What stands in the way of a cluster on this machine, in a person's words, or None."""
    if os.geteuid() != 0:
        return "a Slurm cluster on this machine needs root"
    packages = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if packages:
        return f"Slurm is not installed: apt-get install {' '.join(packages)}"
    config = ETC / "slurm.conf"
    if config.exists() and not config.read_text(errors="replace").startswith(MARK):
        return f"{config} belongs to another cluster"
    if not os.stat(os.devnull).st_mode & stat.S_IWOTH:
        return f"{os.devnull} is not writable for the daemons' users: chmod 666 {os.devnull}"
    return None


def start() -> None:
    """Bring the cluster up and wait until all nodes are idle.

    Raises:
        ClusterError: something is missing, or a daemon does not come up; names its log.
    """
    problem = missing()
    if problem:
        raise ClusterError(problem)
    stop()
    STATE.mkdir(mode=0o755)
    try:
        _start_munge()
        _start_database()
        _write_configuration()
        start_daemon("slurmdbd")
        _wait("slurmdbd", lambda: _ok("sacctmgr", "-n", "show", "cluster"))
        for arguments in (
            ("cluster", "speechmill"),
            ("account", ACCOUNT, "Description=speech", "Organization=speech"),
            ("user", "root", f"Account={ACCOUNT}", f"DefaultAccount={ACCOUNT}"),
        ):
            _run("sacctmgr", "-i", "add", *arguments, accept="already exists")
        start_daemon("slurmctld")
        for node in NODES:
            start_daemon("slurmd", node)
        _wait("slurmctld", healthy)
    except BaseException:
        _show_logs()
        stop(keep_logs=True)
        raise


def stop(keep_logs: bool = False) -> None:
    """End every process of the cluster and remove all that it wrote."""
    if (STATE / "slurmctld.pid").exists() and shutil.which("scancel"):
        subprocess.run(["scancel", "--user=root", "--full"], capture_output=True, timeout=seconds(30), check=False)
    # slurmstepd before slurmd: it would report to it. The database last: slurmdbd flushes to it.
    for pattern in (r"^slurmctld\b", r"^slurmstepd\b", r"^slurmd\b.* -N", r"^slurmdbd\b", "^munged .*" + str(STATE)):
        _end(pattern)
    _end(f"^[^ ]*mariadbd .*{STATE}")
    for number in range(len(NODES) * GPUS):
        Path(f"/dev/speechmill-gpu{number}").unlink(missing_ok=True)
    for name in ("slurm.conf", "slurmdbd.conf", "gres.conf"):
        file = ETC / name
        if file.exists() and file.read_text(errors="replace").startswith(MARK):
            file.unlink()
    if STATE.exists() and not keep_logs:
        shutil.rmtree(STATE)
    elif STATE.exists():
        STATE.rename(STATE.with_name(f"{STATE.name}-failed-{int(time.time())}"))


def start_daemon(name: str, node: str | None = None) -> None:
    """Start slurmdbd, slurmctld or the slurmd of a node."""
    _run(name, *(("-N", node) if node else ()))


def stop_daemon(name: str, node: str | None = None, kill: bool = False) -> None:
    """Stop a daemon; with `kill` by SIGKILL, and its running steps with it, as a node does that loses power."""
    if node and kill:
        _end(rf"^slurmstepd\b.*\[.*\]|^slurmd\b.* -N {node}\b", signal.SIGKILL, only=lambda pid: _is_of(pid, node))
    else:
        _end(rf"^{name}\b" + (rf".* -N {node}\b" if node else ""), signal.SIGKILL if kill else signal.SIGTERM)


def healthy() -> bool:
    """Whether every node is idle or at work."""
    shown = subprocess.run(["sinfo", "-h", "-N", "-o", "%N %T"], capture_output=True, text=True, check=False)
    states = dict(line.split() for line in shown.stdout.splitlines())
    return set(states) == set(NODES) and all(state in ("idle", "mixed", "allocated") for state in states.values())


def break_node(node: str, broken: bool = True) -> None:
    """Make every job step on a node fail as it starts, or stop that."""
    mark = STATE / f"broken-{node}"
    mark.touch() if broken else mark.unlink(missing_ok=True)


def _write_configuration() -> None:
    memory, cpus = 8000, 4
    host = socket.gethostname()
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={17001 + number} CPUs={cpus} "
        f"RealMemory={memory} Gres=gpu:{GPUS} State=UNKNOWN"
        for number, node in enumerate(NODES)
    )
    gres = [MARK]
    for number, node in enumerate(node for node in NODES for _ in range(GPUS)):
        device = f"/dev/speechmill-gpu{number}"
        subprocess.run(["mknod", "-m", "666", device, "c", "1", "3"], check=True)  # /dev/null by another name
        gres.append(f"NodeName={node} Name=gpu File={device}")
    prolog = STATE / "task_prolog"
    prolog.write_text(f'#!/bin/sh\ntest ! -e "{STATE}/broken-$SLURMD_NODENAME"\n')
    prolog.chmod(0o755)
    ETC.mkdir(exist_ok=True)
    (ETC / "slurm.conf").write_text(SLURM_CONF.format(host=host, nodes=nodes))
    (ETC / "gres.conf").write_text("\n".join(gres) + "\n")


def _start_munge() -> None:
    folder = STATE / "munge"
    folder.mkdir(mode=0o755)
    (folder / "key").write_bytes(secrets.token_bytes(128))
    munge = pwd.getpwnam("munge")
    for path in (folder, folder / "key"):
        os.chown(path, munge.pw_uid, munge.pw_gid)
    (folder / "key").chmod(0o600)
    options = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    _run("runuser", "-u", "munge", "--", "munged", *(f"--{key}={folder / name}" for key, name in options.items()))


def _start_database() -> None:
    folder = STATE / "database"
    _run(
        *("mariadb-install-db", "--user=mysql", f"--datadir={folder}", "--skip-test-db"),
        "--auth-root-authentication-method=normal",
    )
    command = [
        *("mariadbd", "--no-defaults", "--user=mysql", f"--datadir={folder}", f"--socket={folder}/socket"),
        *("--bind-address=127.0.0.1", "--port=16306", f"--log-error={folder}/log", f"--pid-file={folder}/pid"),
        *("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=32M", "--innodb-lock-wait-timeout=900"),
    ]
    subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    client = ("mariadb", "--no-defaults", f"--socket={folder}/socket", "--user=root", "--execute")
    _wait("mariadbd", lambda: _ok(*client, "select 1"))
    password = secrets.token_hex(16)
    _run(
        *client,
        f"create user slurm@'127.0.0.1' identified by '{password}'; grant all on slurm_acct_db.* to slurm@'127.0.0.1'",
    )
    ETC.mkdir(exist_ok=True)
    with open(ETC / "slurmdbd.conf", "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(SLURMDBD_CONF.format(password=password))


def _run(*command: str, accept: str | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds(120), check=False)
    output = done.stdout + done.stderr
    if done.returncode and not (accept and accept in output):
        raise ClusterError(f"{' '.join(command[:4])} failed: {output.strip()[-2000:]}")


def _ok(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds(15), check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _wait(what: str, ready: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise ClusterError(f"{what} did not come up within {seconds:.0f} s; see the logs above")
        time.sleep(0.3)


def _show_logs() -> None:
    for log in [*STATE.glob("*.log"), *STATE.glob("*/log")]:
        print(f"== {log}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]), file=sys.stderr)


def _processes(pattern: str) -> list[int]:
    done = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    return [int(pid) for pid in done.stdout.split() if int(pid) != os.getpid()]


def _is_of(pid: int, node: str) -> bool:
    """Whether a slurmd or slurmstepd process belongs to the node: its step sockets lie in the node's folder."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return f"-N {node}" in command or f"SLURMD_NODENAME={node}" in environment


def _end(pattern: str, first: int = signal.SIGTERM, only: Callable[[int], bool] = lambda pid: True) -> None:
    for number, sent in enumerate([first, *[0] * 40, signal.SIGKILL, *[0] * 10]):
        pids = [pid for pid in _processes(pattern) if only(pid)]
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, sent)
            except ProcessLookupError:
                continue
        if number:
            time.sleep(0.25)


def main() -> int:
    """Entry point: start, stop or status."""
    action = sys.argv[1] if len(sys.argv) == 2 else ""
    if action == "start":
        try:
            start()
        except ClusterError as error:
            print(f"cluster: {error}", file=sys.stderr)
            return 1
        subprocess.run(["sinfo", "-N", "-o", "%N %P %c CPUs %m MB %G %T"], check=False)
        return 0
    if action == "stop":
        stop()
        return 0
    if action == "status":
        return subprocess.run(["sinfo", "-N", "-l"], check=False).returncode
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
