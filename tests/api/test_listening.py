"""Where the server listens and keeps its state, and how often it is asked."""

import argparse
import asyncio
import socket

import pytest

from speechmill.api import settings
from speechmill.api.backup import back_up
from speechmill.api.guard import Buckets
from speechmill.api.serve import _listen, check_bind, network_file_system, serve
from speechmill.errors import SpeechmillError


def test_a_bucket_gives_its_burst_and_then_its_rate():
    bucket = Buckets(rate=2, burst=3)
    assert [bucket.wait("a", 0.0) for _ in range(3)] == [0, 0, 0]
    assert bucket.wait("a", 0.0) == 0.5
    assert bucket.wait("b", 0.0) == 0
    assert bucket.wait("a", 0.5) == 0
    assert bucket.wait("a", 0.5) == 0.5
    assert [bucket.wait("a", 100.0) for _ in range(4)] == [0, 0, 0, 0.5]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_may_listen_to_itself(host):
    assert check_bind(host, None, None, False) is False


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "no.such.host.invalid"])
def test_others_are_not_listened_to_in_the_clear(host, tmp_path):
    with pytest.raises(SpeechmillError, match="--insecure-bind"):
        check_bind(host, None, None, False)
    assert check_bind(host, None, None, True) is False
    (tmp_path / "a.pem").touch()
    assert check_bind(host, tmp_path / "a.pem", tmp_path / "a.pem", False) is True
    with pytest.raises(SpeechmillError, match="go together"):
        check_bind(host, tmp_path / "a.pem", None, True)
    with pytest.raises(SpeechmillError, match="cannot be read"):
        check_bind(host, tmp_path / "a.pem", tmp_path / "b.pem", False)


def test_a_disk_of_this_machine_is_no_network_file_system(tmp_path):
    assert network_file_system(tmp_path) is None


def serve_options(*arguments):
    parser = argparse.ArgumentParser()
    settings.add_options(parser)
    return parser.parse_args(arguments)


def test_a_data_base_on_a_network_file_system_has_to_be_insisted_on(tmp_path, monkeypatch):
    monkeypatch.setattr("speechmill.api.serve.network_file_system", lambda path: "nfs4")
    given = ("--state-dir", str(tmp_path / "state"), "--directory", str(tmp_path), "--profile", "local")
    with pytest.raises(SpeechmillError, match="--network-state-dir insists"):
        serve(serve_options(*given), [])
    with pytest.raises(SpeechmillError, match="there is no token yet"):
        serve(serve_options(*given, "--network-state-dir"), [])


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "many"])
def test_a_rate_is_a_number_above_0(rate, capsys):
    for option in ("--changes-per-minute", "--requests-per-second"):
        with pytest.raises(SystemExit):
            serve_options(option, rate)
    assert serve_options("--changes-per-minute", "0.5").changes_per_minute == 0.5


def test_small_answers_on_a_kept_connection_are_sent_at_once():
    async def option():
        found = asyncio.Queue()
        listening = _listen("127.0.0.1", 0)
        with listening:

            async def answer(reader, writer):
                found.put_nowait(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                writer.close()

            async with await asyncio.start_server(answer, sock=listening):
                _, writer = await asyncio.open_connection(*listening.getsockname())
                told = await found.get()
                writer.close()
                return told

    assert asyncio.run(option()) == 1


def test_a_damaged_data_base_is_replaced_by_its_backup_when_the_server_starts(tmp_path, capsys):
    state = tmp_path / "state"
    given = serve_options("--state-dir", str(state), "--directory", str(tmp_path), "--profile", "local")
    given.network_state_dir = True
    with pytest.raises(SpeechmillError, match="there is no token yet"):
        serve(given, [])
    back_up(state / "runs.db")
    (state / "runs.db").write_bytes(b"x" * 10_000)
    with pytest.raises(SpeechmillError, match="there is no token yet"):
        serve(given, [])
    assert capsys.readouterr().err.count("restored the backup of") == 1
    (state / "runs.db").write_bytes(b"x" * 10_000)
    (state / "runs.db.backup").unlink()
    with pytest.raises(SpeechmillError, match="no good backup"):
        serve(given, [])
