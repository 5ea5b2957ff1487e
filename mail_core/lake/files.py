"""URIs of a lake: local folders (a plain path or file://) and object stores (s3, s3a, gs, hdfs, abfs, ...)."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pyarrow import fs

from mail_core.errors import InputError

REMOTE_SCHEMES = ("s3", "s3a", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")


def validated_lake_uri(text: str, what: str = "lake URI") -> str:
    """`text` as every other function takes it: an absolute local path, or a remote URI with no slash at its end.

    `what` names it in errors.

    Raises:
        InputError: empty, an unknown scheme, a remote URI without a bucket, a query, or a local path that is a file.
    """
    expected = f"expected a local folder or a URI of {', '.join(REMOTE_SCHEMES)}"
    if not text.strip() or "\0" in text:
        raise InputError(f"{what} {text!r}: {expected}")
    if _scheme(text) not in ("", "file", *REMOTE_SCHEMES):
        raise InputError(f"{what} {text!r}: scheme {_scheme(text)!r}; {expected}")
    local = local_path(text)
    if local is None:
        parts = urlsplit(text)
        if not parts.netloc or parts.query or parts.fragment:
            raise InputError(f"{what} {text!r}: expected {parts.scheme}://<bucket or host>/<folder>, no query after it")
        return text.rstrip("/")
    if urlsplit(text).scheme == "file" and urlsplit(text).netloc not in ("", "localhost"):
        raise InputError(f"{what} {text!r}: a file URI names no host; expected file:///folder")
    if local.exists() and not local.is_dir():
        raise InputError(f"{what} {text!r}: {local} is a file, expected a folder")
    return str(local)


def local_path(uri: str) -> Path | None:
    """The absolute local path of a plain path or file:// URI; None for a remote one."""
    if _scheme(uri) in ("", "file"):
        return Path(os.path.abspath(unquote(urlsplit(uri).path) if _scheme(uri) else uri))
    return None


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)]) or "/"


def spark_uri(uri: str) -> str:
    """`uri` for Spark: local paths with their scheme, since a cluster's default file system may be another one.

    One slash after it, as Hadoop prints paths: Delta compares the texts when it creates a table.
    """
    local = local_path(uri)
    return uri if local is None else f"file:{local}"


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """PyArrow's file system of `uri`, and the path in it; AWS_ENDPOINT_URL names another S3 server.

    Raises:
        InputError: a scheme that this build of PyArrow does not know.
    """
    local = local_path(uri)
    if local is not None:
        return fs.LocalFileSystem(), str(local)
    scheme, rest = uri.split("://", 1)
    if scheme in ("s3", "s3a"):
        return fs.S3FileSystem(endpoint_override=os.environ.get("AWS_ENDPOINT_URL")), rest.rstrip("/")
    try:
        return fs.FileSystem.from_uri(f"{scheme}://{rest}")
    except (ValueError, OSError) as error:
        raise InputError(f"{uri}: {error}") from error


def _scheme(uri: str) -> str:
    return uri.split(":", 1)[0].lower() if "://" in uri or uri.startswith("file:") else ""
