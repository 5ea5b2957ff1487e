"""MovieLens-100K (RecBole's atomic files or GroupLens' originals) as the raw logs of schemas/movielens.yaml."""

from __future__ import annotations

import argparse
import sys

from mail_core.job import run_job
from mail_core.schema.reader import load_schema
from mail_core.simulation.movielens import import_movielens


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="import_movielens", description=__doc__)
    result.add_argument("--ml100k", required=True, help="folder of ml-100k.inter/.user/.item or u.data/.user/.item")
    result.add_argument("--out", required=True, help="folder for impressions, behaviours, users and items as CSV")
    return result


def main(args: argparse.Namespace) -> str:
    """Import, print what was made, and say so."""
    made = import_movielens(args.ml100k, args.out, load_schema("movielens"))
    ctr = made.clicks / made.ratings
    print(f"ratings {made.ratings:,} (CTR {ctr:.4f}), users {made.users:,}, items {made.items:,}")
    layout = "each user's own history laid out by order" if made.by_order else "the calendar scaled"
    print(f"cut by calendar, {made.known_share:.1%} of the last day's users are known: {layout} over {made.days} days")
    return (f"read {made.ratings:,} ratings; wrote them as impressions and as behaviours, {made.users:,} users and "
            f"{made.items:,} items to {args.out}")


if __name__ == "__main__":
    sys.exit(run_job("import_movielens", parser(), main))
