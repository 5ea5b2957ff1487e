"""What turns raw values into codes: fitted on the training days, stored with every model version as Arrow data."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mail_core.encoding.hashing import stable_hash
from mail_core.errors import InputError
from mail_core.lake.files import filesystem, join
from mail_core.schema.arrow import vocabulary_type
from mail_core.schema.definition import FIRST_CODE, MISSING, UNKNOWN, Schema

_DESCRIPTION = "encoders.json"


@dataclass(frozen=True, kw_only=True)
class DenseStatistics:
    """Of one dense feature over the training days, after its transform."""

    mean: float
    std: float
    """Population standard deviation; 1 where the feature is constant."""


def vocabulary_names(schema: Schema) -> tuple[str, ...]:
    """Every vocabulary: the categorical and multi-valued features by name, then the behaviours' action."""
    return tuple(f.name for f in schema.features if f.kind != "dense") + (schema.action_column,)


def hash_buckets(schema: Schema, vocabulary: str) -> int:
    """Buckets of a hashed vocabulary, 0 for one with values of its own."""
    return 0 if vocabulary == schema.action_column else schema.feature(vocabulary).hash_buckets


@dataclass(frozen=True, eq=False)
class Encoders:
    """Vocabularies and dense statistics of one schema."""

    schema: Schema
    vocabularies: Mapping[str, pa.Array]
    """Vocabulary name -> its values, most frequent first: code = position + 3. Hashed vocabularies are not here."""
    dense: Mapping[str, DenseStatistics]
    """Dense feature name -> its statistics."""

    def __post_init__(self) -> None:
        wanted = {v for v in vocabulary_names(self.schema) if not hash_buckets(self.schema, v)}
        assert set(self.vocabularies) == wanted, f"vocabularies {sorted(self.vocabularies)}, expected {sorted(wanted)}"
        assert set(self.dense) == {f.name for f in self.schema.features if f.kind == "dense"}

    @property
    def vocabulary_sizes(self) -> dict[str, int]:
        """Vocabulary name -> number of codes, with padding, unknown and missing."""
        return {name: FIRST_CODE + (hash_buckets(self.schema, name) or len(self.vocabularies[name]))
                for name in vocabulary_names(self.schema)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the schema's fingerprint, every vocabulary in order and the dense statistics."""
        digest = hashlib.sha256(self.schema.fingerprint.encode())
        for name, values in sorted(self.vocabularies.items()):
            digest.update(f"|{name}:{values.type}:{len(values)}|".encode())
            digest.update(stable_hash(values).astype("<u8").tobytes())
        for name, statistics in sorted(self.dense.items()):
            digest.update(f"|{name}:{statistics.mean!r}:{statistics.std!r}".encode())
        return digest.hexdigest()

    @cached_property
    def _indices(self) -> dict[str, pd.Index]:
        """A hash index a vocabulary, built once: Arrow's own `index_in` would build one a call."""
        return {name: pd.Index(values.to_numpy(zero_copy_only=False)) for name, values in self.vocabularies.items()}

    def codes(self, vocabulary: str, values: pa.Array) -> np.ndarray:
        """int32 codes (B,) of values of the vocabulary's type: NULL 2, not in it 1, else from 3 (or a hash bucket)."""
        # Each distinct value is looked up once: a batch of behaviours repeats few values many times.
        encoded = values.dictionary_encode()
        distinct = encoded.dictionary
        buckets = hash_buckets(self.schema, vocabulary)
        if buckets:
            found = FIRST_CODE + (stable_hash(distinct) % np.uint64(buckets)).astype(np.int64)
        else:
            index = self._indices[vocabulary]
            positions = (index.get_indexer(pd.Index(distinct.to_numpy(zero_copy_only=False)))
                         if len(index) and len(distinct) else np.full(len(distinct), -1))
            found = np.where(positions < 0, UNKNOWN, positions + FIRST_CODE)
        table = np.append(found, MISSING).astype(np.int32)
        return table[encoded.indices.fill_null(len(distinct)).to_numpy()]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write to `folder` (a path or URI): one Arrow IPC file a vocabulary and a small JSON."""
        fs, path = filesystem(os.fspath(folder))
        fs.create_dir(path, recursive=True)
        for name, values in self.vocabularies.items():
            table = pa.table({"value": values})
            with fs.open_output_stream(join(path, f"{name}.arrow")) as sink:
                with pa.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table)
        description = {"schema_fingerprint": self.schema.fingerprint, "fingerprint": self.fingerprint,
                       "dense": {n: {"mean": s.mean, "std": s.std} for n, s in sorted(self.dense.items())}}
        with fs.open_output_stream(join(path, _DESCRIPTION)) as sink:
            sink.write(json.dumps(description, indent=1).encode())

    @classmethod
    def load(cls, folder: str | os.PathLike[str], schema: Schema) -> Encoders:
        """Read what `save` wrote.

        Raises:
            InputError: nothing there, encoders of another schema, or files that differ from those written.
        """
        fs, path = filesystem(os.fspath(folder))
        try:
            with fs.open_input_stream(join(path, _DESCRIPTION)) as source:
                description = json.loads(source.read())
            if description["schema_fingerprint"] != schema.fingerprint:
                raise InputError(f"{folder}: encoders of another schema than {schema.name!r} as it stands "
                                 f"({description['schema_fingerprint'][:12]}, expected {schema.fingerprint[:12]})")
            vocabularies = {}
            for name in vocabulary_names(schema):
                if not hash_buckets(schema, name):
                    with fs.open_input_file(join(path, f"{name}.arrow")) as source:
                        values = pa.ipc.open_file(source).read_all().column("value").combine_chunks()
                    vocabularies[name] = values.cast(vocabulary_type(schema, name))
            encoders = cls(schema, vocabularies, {n: DenseStatistics(**s) for n, s in description["dense"].items()})
        except FileNotFoundError as error:
            raise InputError(f"{folder}: no encoders here ({error})") from error
        except (pa.ArrowInvalid, json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{folder}: not encoders as this version writes them: {error}") from error
        if encoders.fingerprint != description["fingerprint"]:
            raise InputError(f"{folder}: the encoders differ from those that were saved "
                             f"({encoders.fingerprint[:12]}, expected {description['fingerprint'][:12]})")
        return encoders


def ordered_vocabulary(values: pa.Array, counts: pa.Array) -> pa.Array:
    """Distinct values and their counts -> the values by (count descending, value ascending)."""
    order = pc.sort_indices(pa.table({"value": values, "count": counts}),
                            sort_keys=[("count", "descending"), ("value", "ascending")])
    return values.take(order)
