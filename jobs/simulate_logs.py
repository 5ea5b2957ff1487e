"""Simulated raw logs in the shape of a schema, from a planted world whose truth is saved beside them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

from mail_core.job import run_job
from mail_core.schema.reader import load_schema
from mail_core.simulation.logs import simulate_logs
from mail_core.simulation.planted import WorldConfig
from mail_core.spark.session import spark_session

DEFAULTS = {f.name: f.default for f in fields(WorldConfig)}
SETTINGS = {"users": "number of users", "items": "number of items", "days": "days with impressions",
            "behavior_days": "days with behaviours, ending with the last day of impressions",
            "impressions_per_user": "mean impressions of a user", "behaviors_per_user": "mean behaviours of a user",
            "attribute_strength": "how much attributes tell about interest, 0 to 1", "seed": "same seed, same files"}


def parser() -> argparse.ArgumentParser:
    """The command line; settings of the world take their defaults from WorldConfig."""
    result = argparse.ArgumentParser(prog="simulate_logs", description=__doc__)
    result.add_argument("--out", required=True, help="folder for raw files and world/: new, empty or an earlier one")
    for name, text in SETTINGS.items():
        result.add_argument("--" + name.replace("_", "-"), type=type(DEFAULTS[name]), default=DEFAULTS[name],
                            help=f"{text} (default %(default)s)")
    result.add_argument("--schema", default="alimama",
                        help="name of a schema of schemas/, or path of a YAML file: which files (default %(default)s)")
    result.add_argument("--gzip", action="store_true", help="compress the raw files")
    return result


def main(args: argparse.Namespace) -> str:
    """Simulate, print what was made, and say so."""
    config = WorldConfig(**{name: getattr(args, name) for name in SETTINGS})
    schema = load_schema(args.schema)
    made = simulate_logs(spark_session("simulate_logs"), schema, config, args.out, compress=args.gzip)
    print(f"users {made.users:,} ({made.profiles:,} with a profile), items {made.items:,}, "
          f"impressions {made.impressions:,}, behaviours {made.behaviors:,}")
    print(f"CTR {made.clicks / made.impressions:.4f}")
    if schema.impressions.conversion is not None:
        print(f"CVR {made.conversions / max(1, made.clicks):.4f}")
    for name, auc in (("the true probability", made.auc_truth),
                      ("the best attribute-only predictor", made.auc_attributes)):
        value = "undefined: one class only" if auc is None else f"{auc:.4f}"
        print(f"last day, {made.oracle_rows:,} impressions, AUC of {name}: {value}")
    return (f"wrote {made.impressions:,} impressions, {made.behaviors:,} behaviours, {made.profiles:,} user profiles "
            f"and {made.items:,} items to {args.out}")


if __name__ == "__main__":
    sys.exit(run_job("simulate_logs", parser(), main))
