"""What an export holds: manifest.json at its root, written last, so that an export without one does not exist.

Layout of an export root, `<lake>/exports/<end date>-<days>d-<new users>/`:
manifest.json, `<data>/encoders/`, `<data>/{train,validation,test}/part-00000.parquet`, ...
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date, timedelta
from typing import Any, Mapping

from pyarrow import fs as arrow_fs

from mail_core.encoding.encode import encoded_schema, encoded_widths
from mail_core.encoding.encoders import Encoders
from mail_core.encoding.masking import NewUserMode
from mail_core.errors import InputError
from mail_core.lake.files import filesystem, join
from mail_core.schema.definition import DAY, MASKED, UNSEEN, USER_KEY, Schema

MANIFEST = "manifest.json"
EXPORTS = "exports"
PAST_EXPORTS = "exports-as-of"
"""Where exports lie that were made of a table as it once was; `find_export` never sees them."""
REVEALED_EXPORTS = "exports-revealed"
"""Where test days lie with masked users' behaviour as it is; `find_export` never sees them, either."""
TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
_EPOCH = date(1970, 1, 1)
_ROOT_NAME = re.compile(r"(\d{4}-\d{2}-\d{2})-(\d+)d-(natural|masked-.+)")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One Parquet file of one row group."""

    path: str
    """Relative to the export root."""
    rows: int
    days: Mapping[str, int] = field(default_factory=dict)
    """Day (YYYY-MM-DD) -> its rows; empty in an export that is older than this key, which has no column of days."""

    @property
    def stored(self) -> int:
        """Rows of the whole file, of which `rows` are read."""
        return sum(self.days.values()) or self.rows


@dataclass(frozen=True, kw_only=True)
class ColumnEntry:
    """One column of every file."""

    name: str
    dtype: str
    """NumPy name: int32, int64 or float32 (of a list's values where width > 0)."""
    width: int
    """Values of each of its lists; 0: a scalar column."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that training needs to know of an export before it opens a file of it."""

    schema_name: str
    schema_fingerprint: str
    encoder_fingerprint: str
    new_users: str
    """`natural` or `masked:FRACTION:SEED`."""
    end_date: date
    """The last day: the test split."""
    days: int
    """n: train is days 1..n-2, validation day n-1, test day n; encoders come from days 1..n-1."""
    delta_versions: Mapping[str, int]
    """Table -> version that was read (features), or that stood there (the raw tables)."""
    sequence_length: int
    data: str
    """Name of the run's folder below the export root."""
    columns: tuple[ColumnEntry, ...]
    splits: Mapping[str, tuple[FileEntry, ...]]
    statistics: Mapping[str, Any]
    """Table 1 of the paper, and rows, CTR and cohorts of each split."""

    def write(self, export_uri: str) -> None:
        """Put manifest.json in place in one step; a reader sees the old one or the new one."""
        fs, root = filesystem(export_uri)
        fs.create_dir(root, recursive=True)
        draft = join(root, f".{MANIFEST}.{self.data}")
        with fs.open_output_stream(draft) as sink:
            sink.write((json.dumps({**asdict(self), "end_date": self.end_date.isoformat()}, indent=1) + "\n").encode())
        fs.move(draft, join(root, MANIFEST))

    def files(self, splits: tuple[str, ...], since: date | None = None) -> tuple[FileEntry, ...]:
        """The files of the named splits, in their order.

        Args:
            since: those with rows of days from this one on, `rows` counting these alone; None: all.

        Raises:
            InputError: no such split, or its files do not say which of their rows are of these days.
        """
        unknown = [s for s in splits if s not in self.splits]
        if unknown or not splits:
            raise InputError(f"split {', '.join(unknown) or 'none'}: expected some of {', '.join(self.splits)}")
        entries = [self._since(split, entry, since) for split in splits for entry in self.splits[split]]
        return tuple(entry for entry in entries if entry is not None)

    def rows(self, *splits: str, since: date | None = None) -> int:
        """Rows of the named splits, from the day `since` on. Raises InputError as `files` does."""
        return sum(entry.rows for entry in self.files(splits, since))

    @property
    def first_day(self) -> date:
        """Of the n days."""
        return self.end_date - timedelta(days=self.days - 1)

    def _since(self, split: str, entry: FileEntry, since: date | None) -> FileEntry | None:
        """The file's share of the days from `since` on; None where it has none of them."""
        last = self.end_date - timedelta(days=SPLITS[::-1].index(split))
        first = self.first_day if split == TRAIN else last
        if since is None or since <= first:
            return entry
        if since > last:
            return None
        if entry.rows and not entry.days:
            raise InputError(f"{entry.path}: the manifest does not say which of its rows are of the days from {since} "
                             "on; run export_training again")
        rows = sum(rows for day, rows in entry.days.items() if day >= since.isoformat())
        return replace(entry, rows=rows) if rows else None

    def click_rate(self, *splits: str) -> float:
        """Clicks a row of the named splits, from the export's statistics."""
        return self._rate("clicks", "rows", splits)

    def conversion_rate(self, *splits: str) -> float:
        """Conversions a click of the named splits, of an export that has conversions; 0 without a click."""
        return self._rate("conversions", "clicks", splits)

    def _rate(self, part: str, whole: str, splits: tuple[str, ...]) -> float:
        counted = [self.statistics["splits"][split] for split in splits]
        return sum(c[part] for c in counted) / max(1, sum(c[whole] for c in counted))

    def encoders_uri(self, export_uri: str) -> str:
        """Where `Encoders.load` finds this export's encoders."""
        return join(export_uri, self.data, "encoders")

    def check(self, schema: Schema, encoders: Encoders) -> None:
        """Refuse an export that was not made with this schema and these encoders.

        Raises:
            InputError: naming what differs, both values, and what to do.
        """
        columns = export_columns(schema)
        without_days = tuple(column for column in columns if column.name != DAY)  # as exports were once
        expected = {"schema_name": schema.name, "schema_fingerprint": schema.fingerprint,
                    "sequence_length": schema.sequence_length, "encoder_fingerprint": encoders.fingerprint,
                    "columns": without_days if self.columns == without_days else columns}
        for name, value in expected.items():
            found = getattr(self, name)
            if found != value:
                raise InputError(f"{MANIFEST}: {name} is {found!r}, expected {value!r}: the export does not fit, run "
                                 "export_training again with this schema")


def export_columns(schema: Schema) -> tuple[ColumnEntry, ...]:
    """The columns of an export's files: those of `encode`, then the outcomes, user_key, masked, unseen and day (as
    `day_number`)."""
    widths = encoded_widths(schema)
    encoded = [ColumnEntry(name=f.name, width=widths[f.name],
                           dtype=(f.type.value_type if widths[f.name] else f.type).to_pandas_dtype().__name__)
               for f in encoded_schema(schema)]
    marks = {**dict.fromkeys(schema.outcomes, "int32"), USER_KEY: "int64", MASKED: "int32", UNSEEN: "int32",
             DAY: "int32"}
    return (*encoded, *(ColumnEntry(name=name, dtype=dtype, width=0) for name, dtype in marks.items()))


def day_number(day: date) -> int:
    """A day as the export's files have it: days since 1970-01-01."""
    return (day - _EPOCH).days


def day_of(number: int) -> date:
    """The day of a `day_number`."""
    return _EPOCH + timedelta(days=number)


def export_uri(lake_uri: str, end_date: date, days: int, new_users: NewUserMode, version: int | None = None) -> str:
    """The root of the export of `days` days up to `end_date`; with `version`, of `features` as it was then."""
    name = f"{end_date.isoformat()}-{days}d-{new_users.folder}"
    return join(lake_uri, EXPORTS, name) if version is None else join(lake_uri, PAST_EXPORTS, f"{name}-v{version}")


def revealed_uri(export_uri: str) -> str:
    """The root of the test day of the export at `export_uri`, of `<lake>/exports/`, with nothing hidden."""
    lake_uri, _, name = export_uri.rstrip("/").rsplit("/", 2)
    return join(lake_uri, REVEALED_EXPORTS, name)


def manifest_text(export_uri: str) -> str | None:
    """manifest.json of an export as it stands; None without one."""
    fs, root = filesystem(export_uri)
    try:
        with fs.open_input_stream(join(root, MANIFEST)) as source:
            return source.read().decode()
    except FileNotFoundError:
        return None


def manifest_fingerprint(text: str) -> str:
    """Hash of a manifest's text: it names one run of export_training."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(export_uri: str) -> Manifest:
    """Read manifest.json of an export. Raises InputError where it is absent or is not a manifest."""
    fs, root = filesystem(export_uri)
    path = join(root, MANIFEST)
    try:
        with fs.open_input_stream(path) as source:
            node = json.loads(source.read())
        missing = {f.name for f in fields(Manifest)} ^ set(node)
        if missing:
            raise InputError(f"{path}: keys {', '.join(sorted(missing))} missing or unknown; run export_training again")
        node["end_date"] = date.fromisoformat(node["end_date"])
        node["columns"] = tuple(ColumnEntry(**c) for c in node["columns"])
        node["splits"] = {s: tuple(FileEntry(**e) for e in files) for s, files in node["splits"].items()}
        return Manifest(**node)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run export_training first") from error
    except (json.JSONDecodeError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a manifest: {error}") from error


def find_export(lake_uri: str, end_date: date, new_users: str | None = None) -> str:
    """URI of the one finished export that ends on `end_date`, in the mode `new_users` where given.

    Raises:
        InputError: none or several; the message lists what there is.
    """
    fs, exports = filesystem(join(lake_uri, EXPORTS))
    folder = None if new_users is None else NewUserMode.parse(new_users).folder
    listed = fs.get_file_info(arrow_fs.FileSelector(exports, allow_not_found=True))
    finished = sorted(info.base_name for info in listed if info.type == arrow_fs.FileType.Directory
                      and fs.get_file_info(join(info.path, MANIFEST)).type == arrow_fs.FileType.File)
    found = [name for name in finished if (match := _ROOT_NAME.fullmatch(name)) is not None
             and match[1] == end_date.isoformat() and folder in (None, match[3])]
    if len(found) != 1:
        wanted = f"ending on {end_date}" + (f" with new users {new_users}" if new_users else "")
        raise InputError(f"{lake_uri}: {'several exports' if found else 'no export'} {wanted}; there are: "
                         f"{', '.join(found or finished) or 'none'}")
    return join(lake_uri, EXPORTS, found[0])
