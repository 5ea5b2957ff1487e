"""Fixtures of every test: the shipped schemas and one small Spark session with Delta."""

from __future__ import annotations

import os
from typing import Iterator

import pytest
from hypothesis import settings

from mail_core.schema.definition import Schema
from mail_core.schema.reader import load_schema

# No test asserts a time: a busy machine takes many times longer for the same example.
settings.register_profile("any_machine", deadline=None)
settings.load_profile("any_machine")

# Before torch is loaded: two threads wait for each other longer than such small tensors take.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Seen by the session of these tests and by every job that they start in a process of its own.
os.environ.setdefault("PYSPARK_SUBMIT_ARGS", "--master local[2] --conf spark.sql.shuffle.partitions=4 "
                                             "--conf spark.default.parallelism=2 pyspark-shell")
# On tables of some hundred rows nothing is run often enough to be worth the second compiler, a third of a JVM's time.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
os.environ.setdefault("SPARK_DRIVER_MEMORY", "1g")


@pytest.fixture(scope="session")
def alimama() -> Schema:
    return load_schema("alimama")


@pytest.fixture(scope="session")
def movielens() -> Schema:
    return load_schema("movielens")


@pytest.fixture(scope="session")
def spark() -> Iterator:
    from mail_core.spark.session import spark_session  # so that unit tests start no engine

    session = spark_session("tests")
    yield session
    session.stop()
