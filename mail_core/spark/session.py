"""The Spark session of every job: Delta, UTC, Arrow, and defaults that fit a laptop.

Defaults give way to whatever the caller has set by spark-submit, spark-defaults.conf or PYSPARK_SUBMIT_ARGS.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from importlib.metadata import version
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from mail_core.errors import InputError

JARS_VARIABLE = "MAIL_SPARK_JARS"
_BROADCAST = 10 * 2 ** 20
"""Spark's own limit of the files of a table that a join broadcasts, bytes."""
_UNPACKED = 16
"""How many times as large as its files a table is taken to be on its way through the driver."""
logger = logging.getLogger(__name__)
_EXTENSION = "io.delta.sql.DeltaSparkSessionExtension"
_CATALOG = "org.apache.spark.sql.delta.catalog.DeltaCatalog"


def spark_session(app: str) -> SparkSession:
    """The running session, or a new one called `app`; times are UTC and Delta is at hand in either.

    Delta's jars come from the caller (`--packages`, `--jars`), else from the environment variable MAIL_SPARK_JARS
    (comma-separated local files), else from Maven through the Ivy cache. They reach the JVM after its start, because
    under spark-submit it already runs when Python begins.

    Raises:
        InputError: a file of MAIL_SPARK_JARS does not exist, or Maven does not give Delta's jars.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_DRIVER_MEMORY", "2g")  # read when the JVM starts; spark-submit has --driver-memory
    SparkContext._ensure_initialized()  # the JVM only: from here SparkConf() holds all that the caller has set
    conf = SparkConf()
    running = SparkSession.getActiveSession() is not None or SparkContext._active_spark_context is not None
    if not running:
        conf.setIfMissing("spark.master", "local[*]")
        conf.setIfMissing("spark.app.name", app)
        for key, value in {**_defaults(conf), **_broadcasts(SparkContext._jvm, conf)}.items():
            conf.setIfMissing(key, value)
        if not sys.stderr.isatty():
            conf.set("spark.ui.showConsoleProgress", "false")
        conf.set("spark.sql.extensions", _with(conf.get("spark.sql.extensions"), [_EXTENSION]))
        jars = _provide_delta(SparkContext._jvm, conf)
        if jars:
            conf.set("spark.jars", _with(conf.get("spark.jars"), jars))
    spark = SparkSession.builder.config(conf=conf).config("spark.app.name", app).getOrCreate()
    spark.conf.set("spark.sql.session.timeZone", "UTC")  # part of the tables' meaning, so not a default
    return spark


def _defaults(conf: SparkConf) -> dict[str, str]:
    settings = {"spark.sql.catalog.spark_catalog": _CATALOG,
                # Tasks in which VACUUM lists a table, whose folders are its days; Spark's own 10,000 are minutes of
                # tasks with nothing to do.
                "spark.sql.sources.parallelPartitionDiscovery.parallelism": "32",
                "spark.sql.execution.arrow.pyspark.enabled": "true",
                # No limit: under any other value Spark adds up the batch's size after every row, half of the time of
                # a wide timeline. The number of records (maxRecordsPerBatch) limits batches.
                "spark.sql.execution.arrow.maxBytesPerBatch": "2147483647b",
                "spark.log.level": "WARN",
                "spark.sql.debug.maxToStringFields": "200",
                "spark.ui.enabled": "false",
                # Ranks look for their executors every second, not four times a minute, and for as long as ever.
                "spark.scheduler.barrier.maxConcurrentTasksCheck.interval": "1s",
                "spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures": "600",
                # Tables lie in the lake; this folder stays empty, but Spark makes it, by default where the job starts.
                "spark.sql.warehouse.dir": os.path.join(tempfile.gettempdir(), "mail-spark-warehouse")}
    if (conf.get("spark.master") or "").startswith("local"):
        settings |= {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1",
                     # Delta replays its log in 50 partitions otherwise: seconds for each look at a small table.
                     "spark.databricks.delta.snapshotPartitions": "2"}
    return settings


def _broadcasts(jvm: Any, conf: SparkConf) -> dict[str, str]:
    """Joins broadcast only what passes a driver with a small `spark.driver.maxResultSize`: a table is collected there
    on its way, and is many times its files' size then."""
    limit = jvm.org.apache.spark.network.util.JavaUtils.byteStringAsBytes(conf.get("spark.driver.maxResultSize", "1g"))
    share = limit // _UNPACKED
    return {"spark.sql.autoBroadcastJoinThreshold": str(share)} if 0 < share < _BROADCAST else {}


def _with(setting: str | None, entries: list[str]) -> str:
    present = [entry for entry in (setting or "").split(",") if entry]
    return ",".join(present + [entry for entry in entries if entry not in present])


def _provide_delta(jvm: Any, conf: SparkConf) -> list[str]:
    """Make Delta's classes loadable by the driver; the jars that executors then need too."""
    loader = jvm.java.lang.Thread.currentThread().getContextClassLoader()
    try:
        loader.loadClass(_EXTENSION)
        return []
    except Py4JJavaError:
        logger.debug("Delta is not on the class path yet")
    jars = _local_jars() or _maven_jars(jvm, conf)
    for jar in jars:
        loader.addURL(jvm.java.io.File(jar).toURI().toURL())
    return jars


def _local_jars() -> list[str]:
    jars = [os.path.abspath(jar.strip()) for jar in os.environ.get(JARS_VARIABLE, "").split(",") if jar.strip()]
    for jar in jars:
        if not os.path.isfile(jar):
            raise InputError(f"{JARS_VARIABLE}: no file {jar}")
    return jars


def _maven_jars(jvm: Any, conf: SparkConf) -> list[str]:
    scala = ".".join(jvm.scala.util.Properties.versionNumberString().split(".")[:2])
    package = f"io.delta:delta-spark_{scala}:{version('delta-spark')}"
    repositories, ivy, settings = (conf.get(key) for key in
                                   ("spark.jars.repositories", "spark.jars.ivy", "spark.jars.ivySettings"))
    submit = getattr(getattr(jvm.org.apache.spark.deploy, "SparkSubmit$"), "MODULE$")
    said = jvm.java.io.ByteArrayOutputStream()
    usual = submit.printStream()
    getattr(submit, "printStream_$eq")(jvm.java.io.PrintStream(said))  # Ivy's 30 lines, shown only when it fails
    try:
        found = jvm.org.apache.spark.util.DependencyUtils.resolveMavenDependencies(
            True, "", package, repositories, ivy, jvm.scala.Option.apply(settings))
    except Py4JJavaError as error:
        logger.warning("%s", said.toString())
        reason = error.java_exception.getMessage()
        raise InputError(f"Maven did not give {package} ({reason}); without access to it name local jars (delta-spark, "
                         f"delta-storage, antlr4-runtime) in {JARS_VARIABLE}") from error
    finally:
        getattr(submit, "printStream_$eq")(usual)
    return [found.apply(i) for i in range(found.size())]
