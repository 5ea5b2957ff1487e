"""URIs of a lake."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from mail_core.errors import InputError
from mail_core.lake.files import filesystem, join, local_path, spark_uri, validated_lake_uri


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert validated_lake_uri("lake/") == str(tmp_path / "lake")
    assert validated_lake_uri(f"file://{tmp_path}/a%20b") == str(tmp_path / "a b")
    assert validated_lake_uri(f"{tmp_path}/a b") == str(tmp_path / "a b")


@pytest.mark.parametrize("uri", ["s3a://bucket/lake", "s3://bucket", "hdfs://name:8020/lake", "gs://b/x"])
def test_remote_uris_lose_their_last_slash(uri: str) -> None:
    assert validated_lake_uri(uri) == uri
    assert validated_lake_uri(uri + "/") == uri
    assert local_path(uri) is None
    assert spark_uri(uri) == uri


@pytest.mark.parametrize("text", ["", "  ", "ftp://host/lake", "s3a:///lake", "s3a://bucket/lake?x=1", "http://x/y",
                                  "file://host/lake", "a\0b"])
def test_an_odd_uri_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="lake URI"):
        validated_lake_uri(text)


def test_a_file_is_no_lake(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="is a file"):
        validated_lake_uri(str(tmp_path / "x"))


def test_join_puts_parts_below() -> None:
    assert join("/lake", "exports", "a") == "/lake/exports/a"
    assert join("/", "a") == "/a"
    assert join("s3a://bucket/lake/", "a/") == "s3a://bucket/lake/a"


def test_filesystem_reads_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "x y").write_text("hello")
    for uri in (f"{tmp_path}/x y", f"file://{tmp_path}/x%20y"):
        system, path = filesystem(uri)
        assert system.open_input_stream(path).read() == b"hello"


def test_s3a_is_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    system, path = filesystem("s3a://bucket/lake/")
    assert isinstance(system, fs.S3FileSystem) and path == "bucket/lake"


def test_spark_gets_a_scheme(tmp_path: Path) -> None:
    assert spark_uri(str(tmp_path)) == f"file:{tmp_path}"
