"""The export of an earlier training, made again from the tables as they were then."""

from __future__ import annotations

import logging

from pyspark.sql import SparkSession

from mail_core.errors import InputError
from mail_core.lake.tables import Lake
from mail_core.spark.export import ExportWindow, export_training
from mail_core.spark.session import spark_session
from mail_core.training.like import FEATURES, Original

logger = logging.getLogger(__name__)


def export_again(like: Original, lake_uri: str) -> str:
    """Write the export that `like` was trained on, beside today's exports, and return its URI.

    A session that is started for it is ended again: the ranks come next and need the memory.

    Raises:
        InputError: `features` cannot be read any more as it was, or gives another export than it did then.
    """
    version = like.delta_versions[FEATURES]
    running = SparkSession.getActiveSession() is not None
    logger.info("the export of %s has gone: it is made again of %s version %d", like.uri, FEATURES, version)
    spark = spark_session("train")
    try:
        uri, _ = export_training(like.schema, Lake(spark, lake_uri, like.schema),
                                 ExportWindow(end_date=like.end_date, days=like.days), like.new_users,
                                 like.delta_versions)
    finally:
        if not running:
            spark.stop()
    mismatch = like.mismatch(uri)
    if mismatch is not None:
        raise InputError(f"{uri}: made again of {FEATURES} version {version}, but it is not the export of {like.uri}: "
                         f"{mismatch}. Either the table was made anew since (bring it back from a copy), or the code "
                         f"exports otherwise now (check out the version's commit, {like.lineage['commit']})")
    return uri
