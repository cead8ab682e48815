"""A source in a bucket, and what of a run no rule declares, against a real S3 server."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from speechmill.config import validate_config
from speechmill.errors import ClipError, ConfigError, SourceError
from speechmill.ranking.index import is_table
from speechmill.sources import open_source
from speechmill.sources.manifest import build_manifest, describe_source, plan_of, read_batch
from speechmill.storage import s3 as storage
from speechmill.storage.run_folder import RUN, run_folder

from ..runs import ROOT, make_corpus
from .conftest import KEY, SECRET_KEY


@pytest.fixture(autouse=True)
def account(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENDPOINT_URL": s3.meta.endpoint_url, "ACCESS_KEY": KEY, "SECRET_KEY": SECRET_KEY}.items():
        monkeypatch.setenv(f"SNAKEMAKE_STORAGE_S3_{name}", value)
    storage._client.cache_clear()


def upload(s3: Any, folder: Path, prefix: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            s3.upload_file(str(path), "corpora", f"{prefix}/{path.relative_to(folder).as_posix()}")
    return f"s3://corpora/{prefix}"


def clips_of(source: dict[str, Any], work: Path, **changes: Any) -> tuple[list[dict[str, Any]], list[Any], list[str]]:
    """Rows and audio of the one batch, and the notes."""
    given = {"dataset": "tiny", "outdir": str(work), "source": {"kind": "folder", **source}, **changes}
    config = validate_config(given, ROOT / "config")
    opened = open_source(config)
    description = describe_source(opened, config)
    notes = build_manifest(opened, description, config, work / "manifest")
    plan = plan_of(*read_batch(work / "manifest" / "clips-00000.json"))
    rows, audio = zip(*open_source(config).read(plan, None, Counter()), strict=True)
    return list(rows), list(audio), description["notes"] + notes


def test_a_folder_in_a_bucket_has_the_clips_of_the_folder(s3: Any, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus")
    (tmp_path / "corpus" / ".hidden").mkdir()
    (tmp_path / "corpus" / ".hidden" / "a.wav").write_bytes(b"x")
    (tmp_path / "corpus" / "list.csv").write_text("path,text\nclip 0.wav,สวัสดี\nno such.wav,x\n")
    url = upload(s3, tmp_path / "corpus", "same")
    metadata = {"metadata_key": "path", "columns": {"text": "text"}}
    on_disk = {"path": str(tmp_path / "corpus"), "metadata": str(tmp_path / "corpus" / "list.csv"), **metadata}
    rows, paths, notes = clips_of(on_disk, tmp_path / "disk")
    same, data, same_notes = clips_of({"path": url, "metadata": f"{url}/list.csv", **metadata}, tmp_path / "bucket")
    assert same == rows
    assert data == [path.read_bytes() for path in paths]
    assert same_notes == notes


def test_a_file_that_changed_since_it_was_listed_and_one_that_is_too_large_are_errors_of_their_clips(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_corpus(tmp_path / "corpus")
    url = upload(s3, tmp_path / "corpus", "changing")
    limit = (tmp_path / "corpus" / "clip 0.wav").stat().st_size - 1
    listed = open_source

    def changes_first(config: dict[str, Any]) -> Any:
        if (tmp_path / "work" / "manifest").exists():
            s3.put_object(Bucket="corpora", Key="changing/cut.flac", Body=b"another")
        return listed(config)

    monkeypatch.setattr("tests.kubernetes.test_bucket.open_source", changes_first)
    rows, data, _ = clips_of({"path": url}, tmp_path / "work", enhance={"max_bytes": limit})
    found = {row["source_file"]: one for row, one in zip(rows, data, strict=True)}
    assert isinstance(found["cut.flac"], ClipError)
    assert found["cut.flac"].error_class == "changed"
    assert found["clip 0.wav"].error_class == "too_large"
    assert found["text.wav"] == b"not audio"


def test_another_content_is_another_fingerprint(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="corpora", Key="prints/a.wav", Body=b"one")
    given = {"dataset": "tiny", "source": {"kind": "folder", "path": "s3://corpora/prints"}}
    config = validate_config(given, ROOT / "config")
    first = open_source(config).fingerprint()
    assert open_source(config).fingerprint() == first
    s3.put_object(Bucket="corpora", Key="prints/a.wav", Body=b"two")
    assert open_source(config).fingerprint() != first


def test_what_cannot_be_read_is_said(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"s3://nowhere/at-all.*NoSuchBucket"):
        list(storage.objects("s3://nowhere/at-all"))
    given = {"dataset": "tiny", "source": {"kind": "parquet", "path": "s3://corpora/a.parquet"}}
    with pytest.raises(ConfigError, match="cannot be read from a bucket"):
        open_source(validate_config(given, ROOT / "config"))


def test_a_folder_of_a_run_is_there_in_the_block_and_its_changes_are_stored(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kept.json", "removed.json", "declared.tsv"):
        s3.put_object(Bucket="corpora", Key=f"results/tiny/manifest/{name}", Body=b"old")
    stored = {found.path: found for found in storage.objects("s3://corpora/results/tiny/manifest")}
    monkeypatch.setenv(RUN, "s3://corpora/results/tiny")
    folder = tmp_path / "manifest"
    with run_folder().keeping(folder, lambda name: name != "declared.tsv"):
        assert sorted(path.name for path in folder.iterdir()) == ["kept.json", "removed.json"]
        (folder / "removed.json").unlink()
        (folder / "new.json").write_text("new")
        (folder / "declared.tsv").write_text("stored by Snakemake")
    after = {found.path: found for found in storage.objects("s3://corpora/results/tiny/manifest")}
    assert sorted(after) == ["declared.tsv", "kept.json", "new.json"]
    assert after["kept.json"] == stored["kept.json"]  # its time, too: jobs that read it are not repeated
    assert storage.read("s3://corpora/results/tiny/manifest", "declared.tsv") == b"old"


def test_nothing_is_stored_of_a_block_that_fails(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN, "s3://corpora/results/failing")
    with pytest.raises(ValueError), run_folder().keeping(tmp_path / "manifest", lambda name: True):  # noqa: PT011
        (tmp_path / "manifest").mkdir(exist_ok=True)
        (tmp_path / "manifest" / "half.json").write_text("half")
        raise ValueError
    assert not list(storage.objects("s3://corpora/results/failing"))


def test_copies_of_an_earlier_job_do_not_hide_what_is_missing_in_the_bucket(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_object(Bucket="corpora", Key="results/stale/ranking/a.parquet", Body=b"new")
    monkeypatch.setenv(RUN, "s3://corpora/results/stale")
    folder = tmp_path / "ranking"
    folder.mkdir()
    for name in ("a.parquet", "lost.parquet", "ranked.tsv"):
        (folder / name).write_text("old")
    assert run_folder().states(folder).keys() == {"a.parquet"}
    assert run_folder().states(folder)["a.parquet"][0] == len(run_folder().read_text(folder / "a.parquet")) == 3
    with run_folder().keeping(folder, is_table):
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"a.parquet": "new", "ranked.tsv": "old"}
        (folder / "lost.parquet").write_text("old")
    assert storage.read("s3://corpora/results/stale/ranking", "lost.parquet") == b"old"
