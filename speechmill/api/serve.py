"""`speechmill serve`: the API on an address of this machine, loopback unless it is encrypted or somebody insists."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import ipaddress
import os
import socket
import sys
from pathlib import Path

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from speechmill.api.app import make_app
from speechmill.api.auth import new_token, read_tokens
from speechmill.api.backup import recover
from speechmill.api.service import Service
from speechmill.api.settings import PORT, Settings, make_state_dir
from speechmill.api.store import DATA_BASE
from speechmill.errors import SpeechmillError

MOST_CONNECTIONS = 1000
HEAD_SECONDS = 30.0  # in which a request has to come, once there is a connection or a first byte of it
SWITCH_SECONDS = 0.0005  # whoever answers waits that long for a thread that computes, a dozen times per request
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "fuse.sshfs", "9p")


class Protocol(H11Protocol):
    """Of one connection. It is closed if it sends no request, or none to its end: as many as it likes would be open."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_request()

    def _await_request(self) -> None:
        if self.conn.their_state is not h11.IDLE:  # it has come
            if self._late:
                self._late.cancel()
            self._late = None
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)


def serve(options: argparse.Namespace, extra: list[str]) -> int:
    """Answer until interrupted. Runs go on without the server."""
    make_state_dir(options.state_dir)
    settings = Settings(
        state_dir=options.state_dir.resolve(),
        directory=options.directory.resolve(),
        profile=options.profile,
        extra=tuple(extra),
        poll_seconds=options.poll_seconds,
        stall_seconds=options.stall_seconds,
        requests_per_second=options.requests_per_second,
        changes_per_minute=options.changes_per_minute,
    )
    if options.new_token:
        print(new_token(settings.tokens, options.new_token, options.scopes))
        return 0
    kind = network_file_system(settings.state_dir)
    if kind and not options.network_state_dir:
        raise SpeechmillError(
            f"{settings.state_dir} is on a network file system ({kind}), where SQLite's locks do not hold: name a "
            "--state-dir on a disk of this machine; --network-state-dir insists"
        )
    with open(settings.state_dir / "server.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SpeechmillError(f"{settings.state_dir} has a server already; take another --state-dir") from error
        if line := recover(settings.state_dir / DATA_BASE):
            print(line, file=sys.stderr, flush=True)
        service = Service(settings)
        if not settings.tokens.exists():
            raise SpeechmillError(
                f"{settings.tokens}: there is no token yet; make one with speechmill serve --new-token NAME"
            )
        read_tokens(settings.tokens)
        return _answer(service, options)


def _answer(service: Service, options: argparse.Namespace) -> int:
    is_encrypted = check_bind(options.host, options.tls_cert, options.tls_key, options.insecure_bind)
    with _listen(options.host, options.port) as listening:
        address = f"[{options.host}]" if ":" in options.host else options.host
        port = listening.getsockname()[1]
        config = uvicorn.Config(
            make_app(service),
            ssl_certfile=options.tls_cert,
            ssl_keyfile=options.tls_key,
            http=Protocol,
            ws="none",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            log_level="warning",
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
        )
        sys.setswitchinterval(SWITCH_SECONDS)
        print(f"speechmill's API: http{'s' if is_encrypted else ''}://{address}:{port}", flush=True)
        uvicorn.Server(config).run(sockets=[listening])
    return 0


def check_bind(host: str, certificate: Path | None, key: Path | None, insist: bool) -> bool:
    """Whether connections are encrypted.

    Raises:
        SpeechmillError: others than this machine could reach an address in the clear.
    """
    if (certificate is None) != (key is None):
        raise SpeechmillError("--tls-cert and --tls-key go together")
    for file in filter(None, (certificate, key)):
        if not os.access(file, os.R_OK):
            raise SpeechmillError(f"{file} cannot be read")
    if certificate is None and not insist and not is_loopback(host):
        raise SpeechmillError(
            f"--host {host}: whoever is on that network could read tokens. Give --tls-cert and --tls-key, or listen on "
            f"127.0.0.1 and come through ssh -L {PORT}:127.0.0.1:{PORT}; --insecure-bind insists"
        )
    return certificate is not None


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
        return bool(found) and all(ipaddress.ip_address(str(address)).is_loopback for address in found)
    except (OSError, ValueError):
        return False


def network_file_system(path: Path) -> str | None:
    """The type of the network file system that a folder is on; None on a disk of this machine, or where nobody says."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    mounts = [(line.split(" ")[1], line.split(" ")[2]) for line in lines]
    on = [(point, kind) for point, kind in mounts if path.is_relative_to(point)]
    kind = max(on, key=lambda mount: len(mount[0]), default=("", ""))[1]
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends what is written at once (TCP_NODELAY) only where the protocol is named.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(MOST_CONNECTIONS)
    except (OSError, OverflowError) as error:
        listening.close()
        raise SpeechmillError(f"cannot listen on {host}, port {port}: {error}") from error
    return listening
