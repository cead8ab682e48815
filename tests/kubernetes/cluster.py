"""The calls of the Kubernetes API that Snakemake's plugin makes, over HTTP on loopback; containers are local processes.

Paths, objects and status codes are those of the Kubernetes API reference (v1.31: core/v1 Secret, Pod and its log;
batch/v1 Job). Each container has a working directory and a home of its own, and nothing else of the test's environment
than what its image would have: what it needs comes from the bucket. What a real server would refuse is refused.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
CPU = re.compile(r"[0-9]+m?")
BYTES = re.compile(r"[0-9]+([EPTGMk]|[EPTGMK]i|m)?")
KILLED = 137  # the status of a process that the kernel ended


class Cluster:
    """One namespace. `jobs` are the specs that were asked for, by name, in their order; deleted ones too."""

    def __init__(self, folder: Path, namespace: str = "default"):
        self.folder = folder
        self.namespace = namespace
        self.jobs: dict[str, dict[str, Any]] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.all_secrets: dict[str, dict[str, str]] = {}
        self.deleted: list[str] = []
        self.refused: list[str] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.condemned: Callable[[str, int], bool] = lambda rule, earlier: False  # whose pods run out of memory
        self.lock = threading.Lock()
        folder.mkdir(parents=True)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.server.shutdown()
        self.server.server_close()

    def kubeconfig(self) -> Path:
        path = self.folder / "kubeconfig"
        url = f"http://127.0.0.1:{self.server.server_address[1]}"
        context = {"cluster": "loopback", "user": "tester"}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "loopback", "cluster": {"server": url}}],
            "users": [{"name": "tester", "user": {"token": "nobody-checks-it"}}],
            "contexts": [{"name": "loopback", "context": context}],
            "current-context": "loopback",
        }
        path.write_text(json.dumps(content))  # JSON is YAML
        return path

    def container(self, job: str) -> dict[str, Any]:
        return self.jobs[job]["spec"]["template"]["spec"]["containers"][0]

    def of_rule(self, rule: str) -> list[str]:
        """Names of the jobs that ran a rule, in the order of their attempts."""
        return [name for name in self.jobs if self.rule(name) == rule]

    def rule(self, job: str) -> str:
        found = re.search(r"--target-jobs '?([a-z_]+):", " ".join(self.container(job)["args"]))
        assert found, self.container(job)
        return found[1]

    def create_secret(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = body["metadata"]["name"]
        if not NAME.fullmatch(name) or not all(KEY.fullmatch(key) for key in body.get("data") or {}):
            return self._refuse(f"secret {name}: invalid name or key")
        values = {key: base64.b64decode(value, validate=True).decode() for key, value in (body["data"] or {}).items()}
        self.secrets[name] = self.all_secrets[name] = values
        return 201, body

    def create_job(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = body["metadata"]["name"]
        with self.lock:
            if name in self.jobs:
                return 409, _status(409, "AlreadyExists", f'jobs.batch "{name}" already exists')
            if problem := self._problem(body):
                return self._refuse(f"{name}: {problem}")
            self.jobs[name] = body
            rule = self.rule(name)
            earlier = len(self.of_rule(rule)) - 1
            self._start(name, self.condemned(rule, earlier))
        return 201, body

    def _problem(self, body: dict[str, Any]) -> str | None:
        """Why the API server would not admit a job."""
        pod = body["spec"]["template"]["spec"]
        if pod.get("restartPolicy") not in ("Never", "OnFailure"):
            return "restartPolicy: Required value: valid values: OnFailure, Never"
        if not all(isinstance(value, str) for value in (pod.get("nodeSelector") or {}).values()):
            return "nodeSelector: not strings"
        volumes = {volume["name"] for volume in pod.get("volumes") or []}
        for container in pod["containers"]:
            if not container.get("image") or "$" in container["image"]:
                return "image: Required value"
            if not {mount["name"] for mount in container.get("volumeMounts") or []} <= volumes:
                return "volumeMounts: not found"
            asked = container["resources"].get("requests") or {}
            limits = container["resources"].get("limits") or {}
            for name, value in [*asked.items(), *limits.items()]:
                pattern = CPU if name == "cpu" else re.compile("[0-9]+") if "/" in name else BYTES
                if not pattern.fullmatch(value):
                    return f"resources: {name}: {value} is no quantity"
            for name in {name for name in asked | limits if "/" in name}:
                if asked.get(name, limits.get(name)) != limits.get(name):
                    return f"resources: {name}: limit must be set and equal to the request"
            if any(_number(asked[name]) > _number(limits[name]) for name in asked.keys() & limits.keys()):
                return "resources: must be less than or equal to the limit"
        return None

    def _refuse(self, why: str) -> tuple[int, dict[str, Any]]:
        self.refused.append(why)
        return 422, _status(422, "Invalid", why)

    def _start(self, name: str, condemned: bool) -> None:
        pod = self.folder / name
        workdir = pod / "workdir"
        workdir.mkdir(parents=True)
        container = self.container(name)
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(pod),
            "TMPDIR": str(pod),
            "OMP_NUM_THREADS": "1",
            "PIP_NO_INDEX": "1",  # nothing is installed in a pod
        }
        for one in container.get("env") or []:
            reference = one["valueFrom"]["secretKeyRef"]
            environment[one["name"]] = self.secrets[reference["name"]][reference["key"]]
        command = ["/bin/sh", "-c", "kill -9 $$"] if condemned else [*container["command"], *container["args"]]
        with open(pod / "log", "wb") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=workdir, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def status(self, name: str) -> dict[str, Any]:
        code = self.processes[name].poll()
        counts = {"active": 1} if code is None else {"succeeded": 1} if code == 0 else {"failed": 1}
        return self.jobs[name] | {"status": counts}

    def pod(self, name: str) -> dict[str, Any]:
        code = self.processes[name].poll()
        if code is None:
            state: dict[str, Any] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        else:
            killed = {"reason": "OOMKilled", "exitCode": KILLED} if code < 0 else {"exitCode": code}
            state = {"terminated": killed}
        container = self.container(name)
        one = {"name": container["name"], "image": container["image"], "imageID": "", "ready": False}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{name}-pod", "labels": {"job-name": name}},
            "spec": self.jobs[name]["spec"]["template"]["spec"],
            "status": {"containerStatuses": [one | {"restartCount": 0, "state": state, "lastState": {}}]},
        }


def _number(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(re.sub(r"\D", "", quantity))


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    about = {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure"}
    return about | {"message": message, "reason": reason, "code": code}


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    core = f"/api/v1/namespaces/{cluster.namespace}"
    batch = f"/apis/batch/v1/namespaces/{cluster.namespace}"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self, code: int, body: dict[str, Any] | str) -> None:
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def body(self) -> dict[str, Any]:
            return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")

        def not_found(self) -> None:
            self.answer(404, _status(404, "NotFound", f"{self.path} not found"))

        def do_POST(self) -> None:
            body = self.body()
            if self.path == f"{core}/secrets":
                self.answer(*cluster.create_secret(body))
            elif self.path == f"{batch}/jobs":
                self.answer(*cluster.create_job(body))
            else:
                self.not_found()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            if found := re.fullmatch(rf"{batch}/jobs/([^/]+)/status", url.path):
                known = found[1] in cluster.jobs and found[1] not in cluster.deleted
                self.answer(200, cluster.status(found[1])) if known else self.not_found()
            elif url.path == f"{core}/pods":
                name = query["labelSelector"].removeprefix("job-name=")
                pods = [cluster.pod(name)] if name in cluster.jobs and name not in cluster.deleted else []
                self.answer(200, {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": pods})
            elif found := re.fullmatch(rf"{core}/pods/([^/]+)-pod/log", url.path):
                if query.get("previous", "false").lower() == "true":  # of a container that was never restarted
                    why = f'previous terminated container "snakemake" in pod "{found[1]}-pod" not found'
                    self.answer(400, _status(400, "BadRequest", why))
                else:
                    self.answer(200, (cluster.folder / found[1] / "log").read_text(errors="replace"))
            else:
                self.not_found()

        def do_DELETE(self) -> None:
            self.body()
            path = urlsplit(self.path).path
            if found := re.fullmatch(rf"{core}/secrets/([^/]+)", path):
                cluster.secrets.pop(found[1], None)
                self.answer(200, _status(200, "", "") | {"status": "Success"})
            elif found := re.fullmatch(rf"{core}/pods/([^/]+)-pod", path):
                self.answer(200, cluster.pod(found[1]))
            elif found := re.fullmatch(rf"{batch}/jobs/([^/]+)", path):
                process = cluster.processes[found[1]]
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                cluster.deleted.append(found[1])
                self.answer(200, _status(200, "", "") | {"status": "Success"})
            else:
                self.not_found()

    return Handler
