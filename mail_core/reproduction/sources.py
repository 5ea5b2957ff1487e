"""What all trainings read, and what all versions are measured on: one export, and its test day with nothing hidden."""

from __future__ import annotations

from dataclasses import dataclass

from mail_core.encoding.masking import NewUserMode
from mail_core.loading.manifest import TEST, TRAIN, VALIDATION, export_uri, manifest_text
from mail_core.reproduction.config import ReproductionConfig
from mail_core.schema.definition import Schema
from mail_core.schema.reader import load_schema
from mail_core.training.data import Export, open_export


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Both are made once, before the first training, and stay."""

    export: Export
    revealed: Export

    @property
    def schema(self) -> Schema:
        """Of both."""
        return self.export.schema


def prepared(config: ReproductionConfig) -> Sources:
    """The export of the configuration and its revealed test day; Spark starts, and ends, only where one is absent.

    Raises:
        InputError: no features to make them of, or an export that does not fit the schema.
    """
    from mail_core.spark.revealed import standing_revealed
    schema, mode = load_schema(config.schema), NewUserMode.parse(config.new_users)
    uri = export_uri(config.lake_uri, config.end_date, config.days, mode)
    revealed = None if manifest_text(uri) is None else standing_revealed(uri)
    if revealed is None:
        revealed = _made(schema, mode, config, uri)
    return Sources(export=open_export(uri, schema, TRAIN, VALIDATION, TEST),
                   revealed=open_export(revealed, schema, TEST))


def _made(schema: Schema, mode: NewUserMode, config: ReproductionConfig, uri: str) -> str:
    from pyspark.sql import SparkSession

    from mail_core.lake.tables import Lake
    from mail_core.spark.export import ExportWindow, export_training
    from mail_core.spark.revealed import write_revealed
    from mail_core.spark.session import spark_session
    running = SparkSession.getActiveSession() is not None
    spark = spark_session("reproduce_paper")
    try:
        lake = Lake(spark, config.lake_uri, schema)
        if manifest_text(uri) is None:
            export_training(schema, lake, ExportWindow(end_date=config.end_date, days=config.days), mode)
        return write_revealed(schema, lake, uri)
    finally:
        if not running:  # the trainings come next and need the memory
            spark.stop()
