"""The test day of an export with nothing hidden: the same rows and codes, masked users with their real behaviour.

Evaluation reads it (what would a model say if it knew them?), training never does: it looks for exports elsewhere.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace

from mail_core.encoding.encoders import Encoders
from mail_core.encoding.masking import NewUserMode
from mail_core.lake.files import join
from mail_core.lake.tables import Lake
from mail_core.loading.manifest import SPLITS, TEST, manifest_text, read_manifest, revealed_uri
from mail_core.schema.definition import USER, Schema
from mail_core.spark.export import ExportWindow, data_folders, gather_files, remove_data, write_encoded
from mail_core.spark.new_users import marked_rows
from mail_core.spark.statistics import SPLIT, unseen_users

logger = logging.getLogger(__name__)


def write_revealed(schema: Schema, lake: Lake, export_uri: str) -> str:
    """Write the revealed test day of the export at `export_uri`, from `features` as that export read it; its URI.

    It has the export's format and a manifest of its own, in which the other splits are empty.

    Raises:
        InputError: `features` cannot be read any more as it was.
    """
    manifest, root = read_manifest(export_uri), revealed_uri(export_uri)
    window = ExportWindow(end_date=manifest.end_date, days=manifest.days)
    features = lake.read_days("features", window.wanted(), manifest.delta_versions["features"])
    newcomers = unseen_users(features.select(window.split().alias(SPLIT), USER), TEST)
    test_day = window.with_split(features.where(window.split() == TEST))
    rows = marked_rows(test_day, NewUserMode.parse(manifest.new_users)).join(newcomers, USER, "left")
    data, older = f"data-{uuid.uuid4().hex[:12]}", data_folders(root)
    Encoders.load(manifest.encoders_uri(export_uri), schema).save(join(root, data, "encoders"))
    counts = {TEST: manifest.rows(TEST)}
    write_encoded(rows, schema, counts, join(root, data))
    splits = gather_files(root, data, counts)
    replace(manifest, data=data, splits={split: splits[split] for split in SPLITS}).write(root)
    remove_data(root, older)
    logger.info("the test day of %s with nothing hidden: %s rows in %s", export_uri, f"{counts[TEST]:,}", root)
    return root


def standing_revealed(export_uri: str) -> str | None:
    """The revealed test day of the export as it stands, where it has been written."""
    root = revealed_uri(export_uri)
    if manifest_text(root) is None:
        return None
    revealed, manifest = read_manifest(root), read_manifest(export_uri)
    same = all(getattr(revealed, name) == getattr(manifest, name)
               for name in ("encoder_fingerprint", "delta_versions", "new_users", "schema_fingerprint", "columns"))
    return root if same else None
