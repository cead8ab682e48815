"""Common Voice from the Mozilla Data Collective: its real client against a service on loopback."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from speechmill.errors import SourceError
from speechmill.sources import mozilla
from speechmill.utils import retry

from .. import corpora
from ..corpora import configured, list_and_read

pytest.importorskip(
    "datacollective", reason="needs datacollective: pip install 'speechmill[mozilla]', with Python 3.11.4 or newer"
)
NAME = "cv-corpus-25.0-2026-03-09-th.tar.gz"


class Service:
    """One data set, cv-th. `faults` are statuses of the next answers; `cut` closes the next download half-way."""

    def __init__(self, data: bytes):
        self.data, self.filename, self.checksum = data, NAME, hashlib.sha256(data).hexdigest()
        self.faults: list[int] = []
        self.cut = False
        self.log: list[tuple[str, str, str | None]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def answer(self, status, body, cut=None):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if cut is None else body[:cut])
                self.close_connection = cut is not None

            def do_GET(self):
                service.log.append((self.command, self.path, self.headers.get("Range")))
                if service.faults:
                    self.answer(service.faults.pop(0), b'{"message": "as asked for"}')
                elif self.path == "/api/datasets/cv-th":
                    details = {"id": "cv-th", "filename": service.filename, "sizeBytes": str(len(service.data))}
                    self.answer(200, json.dumps(details | {"checksum": service.checksum}).encode())
                elif self.path == "/file":
                    start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
                    cut, service.cut = (len(service.data) // 2 if service.cut else None), False
                    self.answer(206 if start else 200, service.data[start:], cut)
                else:
                    self.answer(404, b'{"message": "no such data set"}')

            def do_POST(self):
                service.log.append((self.command, self.path, None))
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Authorization") != "Bearer mdc_key":
                    self.answer(401, b'{"message": "invalid key"}')
                elif service.faults:
                    self.answer(service.faults.pop(0), b'{"message": "accept the terms first"}')
                else:
                    plan = {"downloadUrl": f"{service.url}/file", "sizeBytes": len(service.data)}
                    self.answer(200, json.dumps(plan | {"checksum": service.checksum}).encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def service(tmp_path, monkeypatch):
    corpora.common_voice(tmp_path / "made.tar.gz")
    made = Service((tmp_path / "made.tar.gz").read_bytes())
    monkeypatch.setenv("MDC_API_URL", f"{made.url}/api")
    monkeypatch.setenv("MDC_API_KEY", "mdc_key")
    monkeypatch.setattr(retry, "PAUSES", (0.05,))
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_an_archive_is_downloaded_and_read(service, tmp_path):
    clips, *_ = list_and_read(configured(tmp_path / "results", "common_voice", datacollective="cv-th"))
    assert sum(map(len, clips.values())) == 6
    assert [p.name for p in (tmp_path / "results" / "x" / "raw" / "archive").iterdir()] == [NAME]


def test_a_cut_download_goes_on_and_limits_are_waited_out(service, tmp_path):
    service.cut = True
    service.faults = [503, 429]
    path = mozilla.download("cv-th", tmp_path / "raw", 1)
    assert path.read_bytes() == service.data
    ranges = [asked for _, path, asked in service.log if path == "/file"]
    assert ranges[0] is None
    assert int(re.match(r"bytes=(\d+)-$", ranges[1])[1]) >= len(service.data) // 4


def test_a_release_is_known_by_its_archive(service):
    first = mozilla.release("cv-th", 1)
    assert first == mozilla.release("cv-th", 1)
    service.checksum = "0" * 64
    assert mozilla.release("cv-th", 1) != first


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_said_at_once(service, tmp_path, status):
    service.faults = [status]
    with pytest.raises(SourceError, match=r"denies access|rejects"):
        mozilla.download("cv-th", tmp_path / "raw", 60)
    assert len(service.log) == 1


def test_a_key_that_is_missing_or_wrong(service, tmp_path, monkeypatch):
    monkeypatch.setenv("MDC_API_KEY", "mdc_wrong")
    with pytest.raises(SourceError, match=r"denies access|rejects") as caught:
        mozilla.download("cv-th", tmp_path / "raw", 60)
    assert "mdc_wrong" not in str(caught.value)
    monkeypatch.delenv("MDC_API_KEY")
    with pytest.raises(SourceError, match="MDC_API_KEY is not set"):
        mozilla.download("cv-th", tmp_path / "raw", 60)


def test_an_archive_that_is_not_what_was_promised(service, tmp_path):
    service.checksum = "0" * 64
    with pytest.raises(SourceError, match="downloaded twice, but its SHA-256 is not"):
        mozilla.download("cv-th", tmp_path / "raw", 1)


@pytest.mark.parametrize("name", ["../../evil.tar.gz", "/etc/x.tar.gz", "x.zip", ".tar.gz", ""])
def test_the_name_of_an_archive_is_never_a_path(service, tmp_path, name):
    service.filename = name
    with pytest.raises(SourceError, match="calls its archive"):
        mozilla.download("cv-th", tmp_path / "raw", 1)
    assert not list((tmp_path / "raw").iterdir())
