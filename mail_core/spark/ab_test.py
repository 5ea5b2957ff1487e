"""Two versions rank for the users of a day's `features`; each user is served on a worker by both rankers' rules.

U users, N candidates of a user.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
from pyspark import Broadcast
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from mail_core.encoding.hashing import stable_hash
from mail_core.encoding.masking import NewUserMode
from mail_core.errors import InputError
from mail_core.evaluation.comparison import BootstrapConfig
from mail_core.evaluation.lift import Lift, Served, lifts
from mail_core.evaluation.tables import format_lifts
from mail_core.package.scoring import Package
from mail_core.package.store import NEW_USERS, load_package
from mail_core.schema.definition import DAY, ITEM, TIME, USER, Schema
from mail_core.simulation.ab_test import AbTestConfig, Session, arms, draw_session
from mail_core.simulation.world import World
from mail_core.spark.evaluation import check_inputs
from mail_core.spark.evaluations import features_of
from mail_core.spark.features import with_items
from mail_core.spark.new_users import with_new_users
from mail_core.spark.packages import FolderHandle, PackageHandle, ship_folder, ship_package

if TYPE_CHECKING:  # executors need neither Delta nor MLflow
    from mail_core.lake.tables import Lake
    from mail_core.tracking.registry import ResolvedModel

COHORTS = ("old", "new", "all")
_USERS = 256
"""Served at once: with 100 candidates each, as many rows as scoring takes in a few chunks."""
_COUNTS = ("shown", "clicks", "conversions")
_SERVED = "user_key long, is_new boolean, " + ", ".join(f"{name} array<long>" for name in _COUNTS)
_LIFTS = pa.schema([*((name, pa.string()) for name in ("cohort", "metric")),
                    *((name, pa.int64()) for name in ("model_users", "against_users")),
                    *((name, pa.float64()) for name in ("model", "against", "lift", "low", "high"))])


@dataclass(frozen=True, kw_only=True)
class AbTestRequest:
    """Which versions are held against each other, before which users."""

    day: date
    """A day of `features`: its users, as they were at their first impression."""
    model: ResolvedModel
    against: ResolvedModel
    world: Path
    """Folder of the simulator's world."""
    new_users: NewUserMode | None = None
    """None: the mode of the export that `model` was trained on."""
    config: AbTestConfig = AbTestConfig()
    bootstrap: BootstrapConfig = BootstrapConfig()


@dataclass(frozen=True, kw_only=True)
class AbTestSummary:
    """What was found."""

    request: AbTestRequest
    new_users: NewUserMode
    """As it was applied."""
    lifts: list[Lift]
    """By cohort in the order of COHORTS, the CTR's then the CTCVR's."""


def simulate_ab_test(schema: Schema, lake: Lake, request: AbTestRequest) -> AbTestSummary:
    """Serve every user of the day by the rules of `request.config`, and sum up by cohort.

    Raises:
        InputError: no features of that day, a version that was made for other input or cannot rank by what is asked
            for, or a world that is none or has no conversions.
    """
    packages = [load_package(version.package_folder) for version in (request.model, request.against)]
    features = features_of(lake, request.day)
    for package, version in zip(packages, (request.model, request.against)):
        check_inputs(features, package)
        if request.config.rank_by == "ctcvr" and package.config.head != "esmm":
            raise InputError(f"rank by ctcvr: {version.title} has the head {package.config.head!r}, expected 'esmm'")
    if World.load(str(request.world)).conversion_effect_I is None:
        raise InputError(f"{request.world}: a world without conversions; run simulate_logs again")
    new_users = request.new_users or NewUserMode.parse(packages[0].lineage[NEW_USERS])
    first = F.row_number().over(Window.partitionBy(USER).orderBy(TIME, ITEM))
    users = features.withColumn("_first", first).where(F.col("_first") == 1).drop("_first")
    spark = features.sparkSession
    # All of it on the driver and on every worker, as the world's own items are.
    items = spark.sparkContext.broadcast(_items(schema, lake.read("items"), request.day))
    handles = [ship_package(spark, version.package_folder) for version in (request.model, request.against)]
    served = with_new_users(users, schema, new_users).mapInArrow(
        _server(schema, handles, ship_folder(spark, request.world), items, request.config), _SERVED)
    cohorts = F.array(F.when(F.col("is_new"), "new").otherwise("old"), F.lit("all"))
    lines = served.withColumn("cohort", F.explode(cohorts)).groupBy("cohort").applyInArrow(
        _summariser(request.bootstrap), from_arrow_schema(_LIFTS)).collect()
    found = [Lift(**line.asDict()) for line in lines]  # of a cohort the CTR's first
    return AbTestSummary(request=request, new_users=new_users,
                         lifts=sorted(found, key=lambda lift: COHORTS.index(lift.cohort)))


def format_summary(summary: AbTestSummary) -> str:
    """What was done, in two lines, then a line a cohort and metric."""
    request, config, bootstrap = summary.request, summary.request.config, summary.request.bootstrap
    served = ("both versions serve every user (paired)" if config.paired
              else "each user is served by one version, as a hash says")
    title = (f"{request.model.title} against {request.against.title}, users of {request.day}, new users "
             f"{summary.new_users}\n{served}; the {config.shown} of {config.candidates} candidates with the highest "
             f"{config.rank_by} are shown; seed {config.seed}, {bootstrap.resamples} draws of users")
    return format_lifts(title, summary.lifts, bootstrap.confidence)


def _items(schema: Schema, items: DataFrame, day: date) -> pa.Table:
    """ITEM and the item features of every item, as of the day, by ITEM."""
    rows = items.select(F.col(schema.items.key).alias(ITEM)).distinct().withColumn(DAY, F.lit(day))
    names = [f.name for f in schema.group("item")]
    return with_items(schema, rows, items).select(ITEM, *names).orderBy(ITEM).toArrow()


def _server(schema: Schema, versions: list[PackageHandle], world: FolderHandle, items: Broadcast[pa.Table],
            config: AbTestConfig) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def serve(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        packages, truth = [version.load() for version in versions], World.load(str(world.path()))
        for batch in batches:
            rows = pa.Table.from_batches([batch])
            for first in range(0, rows.num_rows, _USERS):
                yield _serve(schema, packages, truth, items.value, rows.slice(first, _USERS), config)

    return serve


def _serve(schema: Schema, packages: list[Package], truth: World, items: pa.Table, rows: pa.Table,
           config: AbTestConfig) -> pa.RecordBatch:
    """Rows of `features`, one a user -> `_SERVED`; the lists are of the two arms."""
    users = rows.column(USER).combine_chunks()
    session = draw_session(users, items.column(ITEM).to_numpy(), truth, config)
    served_U2 = arms(users, config)
    counts = np.zeros((len(_COUNTS), len(users), 2), dtype=np.int64)
    for arm, package in enumerate(packages):
        mine_U = served_U2[:, arm]
        some = session.select(mine_U)
        scores_UN = _scores(schema, package, rows.filter(pa.array(mine_U)), items, some, config.rank_by)
        counts[:, mine_U, arm] = [np.full(len(scores_UN), min(config.shown, scores_UN.shape[1])),
                                  *some.outcomes(scores_UN, config.shown)]
    lengths = rows.column(schema.action_column).combine_chunks().value_lengths().fill_null(0)
    return pa.RecordBatch.from_pydict({
        "user_key": stable_hash(users).view(np.int64), "is_new": lengths.to_numpy() == 0,
        **{name: pa.array(list(part), pa.list_(pa.int64())) for name, part in zip(_COUNTS, counts)}})


def _scores(schema: Schema, package: Package, rows: pa.Table, items: pa.Table, session: Session,
            rank_by: str) -> np.ndarray:
    """(U, N): candidates in the context of the user's own impression."""
    user_index = np.repeat(np.arange(rows.num_rows), session.position_UN.shape[1])
    own, targets = rows.take(user_index), items.take(session.position_UN.ravel())
    candidates = {**{f.name: own.column(f.name) for f in schema.group("context")},
                  **{f.name: targets.column(f.name) for f in schema.group("item")}}
    scores = package.score_candidates(rows.select(package.user_schema.names), user_index, pa.table(candidates))
    chosen = scores.ctr if rank_by == "ctr" else scores.ctcvr
    assert chosen is not None, "the head was checked on the driver"
    return chosen.reshape(session.position_UN.shape)


def _summariser(config: BootstrapConfig) -> Callable[..., pa.Table]:
    def summarise(key: tuple[pa.Scalar, ...], group: pa.Table) -> pa.Table:
        group = group.sort_by("user_key")  # so that resamples do not depend on the order of arrival
        counts = {f"{name}_U2": np.array(group.column(name).to_pylist()).reshape(-1, 2) for name in _COUNTS}
        return pa.Table.from_pylist([vars(lift) for lift in lifts(key[0].as_py(), Served(**counts), config)],
                                    schema=_LIFTS)

    return summarise
