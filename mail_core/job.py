"""What every job shares: logging to stderr, exit codes, the final line. Results go to stdout, logs to stderr."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from datetime import date
from typing import Callable

from mail_core.errors import InputError

DONE, FAILURE, BAD_INPUT = 0, 1, 2

logger = logging.getLogger(__name__)


def run_job(name: str, parser: argparse.ArgumentParser, main: Callable[[argparse.Namespace], str],
            argv: list[str] | None = None) -> int:
    """Parse `argv`, run `main` and turn its outcome into an exit code: 0 done, 2 bad arguments or input, 1 failure.

    `main` returns the closing sentence: what was read, what was written, how many rows. The time taken is added here.
    """
    configure_logging()
    args = parser.parse_args(argv)
    start = time.monotonic()
    try:
        summary = main(args)
    except InputError as error:
        logger.error("%s: %s", name, error)
        return BAD_INPUT
    except Exception as error:
        logger.exception("%s failed", name)
        logger.error("%s failed: %s", name, cause(error))  # in one line, after the engines' hundreds
        return FAILURE
    logger.info("%s done in %.1f s: %s", name, time.monotonic() - start, summary)
    return DONE


def cause(error: BaseException) -> str:
    """The innermost cause of an error, the JVM's under Python's, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    return (causes or [f"{type(error).__name__}: {lines[0] if lines else 'no message'}"])[-1][:500]


def dataset_parser(description: str | None, schema_required: bool = True) -> argparse.ArgumentParser:
    """A parser with what every job on a dataset's tables takes."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--schema", required=schema_required,
                        help="name of a schema of schemas/, or path of a YAML file")
    result.add_argument("--lake", required=True, help="URI of the Delta tables: a folder or an object store")
    return result


def add_day(parser: argparse.ArgumentParser, what: str) -> None:
    """--date, the one local day that the job works on."""
    parser.add_argument("--date", required=True, type=date.fromisoformat, help=f"{what}, YYYY-MM-DD")


def add_version(parser: argparse.ArgumentParser) -> None:
    """--model, one version or an alias."""
    parser.add_argument("--model", required=True, help="models:/NAME@ALIAS or models:/NAME/VERSION")


def add_new_users(parser: argparse.ArgumentParser, trained: str) -> None:
    """--new-users; by default the mode of the version called `trained`."""
    parser.add_argument("--new-users", metavar="MODE", help=(
        f"natural or masked:FRACTION:SEED (default: the mode that {trained} was trained with)"))


def add_tracking(parser: argparse.ArgumentParser) -> None:
    """--tracking-uri."""
    parser.add_argument("--tracking-uri", help="MLflow's store (default: SQLite beside a local lake)")


def configure_logging() -> None:
    """Plain timestamped lines on stderr; the engines' own chatter from WARNING up."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("py4j", "petastorm", "alembic", "mlflow", "urllib3", "fsspec", "torch.distributed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
