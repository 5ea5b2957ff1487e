"""What a registered version says of itself to a person: data window, cohort metrics, promotion decision, as Markdown.

MLflow's page shows it; a store keeps 5,000 characters of it.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any, Mapping, Sequence

from mail_core.evaluation.promotion import Promotion
from mail_core.evaluation.tables import number
from mail_core.package.store import NEW_USERS, WARM_START

MOST = 5000
_HEADING = "## Promotion"
_COLUMNS = ("cohort", "rows", "CTR", "AUC", "GAUC", "logloss", "ECE")


def version_description(lineage: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Of a version as its training left it; what its package does not tell is left out."""
    parts = [f"New users: {lineage[NEW_USERS]}."]
    if "export" in lineage:
        first, test = (date.fromisoformat(lineage["export"][key]) for key in ("first_day", "end_date"))
        trained = f"Trained on {first} to {test - timedelta(days=1)}"
        if WARM_START in lineage:
            start = lineage[WARM_START]
            trained = f"Trained on {start['first_day']} to {start['last_day']}, starting from {start['version']}"
        parts[0] = f"{trained}, measured on {test}; new users: {lineage[NEW_USERS]}."
    if "cohorts" in metrics:
        shown = ("ctr", "auc", "gauc", "logloss", "ece")
        parts.append(_table(_COLUMNS, [(c["cohort"], f"{c['rows']:,}", *(number(c[name]) for name in shown))
                                       for c in metrics["cohorts"]]))
    return "\n\n".join(parts)


def with_promotion(description: str, promotion: Promotion) -> str:
    """`description` with its section on the promotion added, or replaced by this one; what stands before it stays."""
    before = description.split(_HEADING, 1)[0].rstrip()
    against = "a constant CTR" if promotion.champion is None else f"version {promotion.champion}, then champion"
    said = [_HEADING, f"**{promotion.decision.capitalize()}** on {promotion.day} (measured against {against}).",
            promotion.reason[:1].upper() + promotion.reason[1:] + "."]
    if promotion.gain_lost:
        said.append(f"**Virtual behaviour gains nothing:** AUC of {promotion.gain_cohort} users "
                    f"{number(promotion.virtual_behavior_gain, '+.4f')} over its own tower with it switched off.")
    if promotion.rolled_back_to is not None:
        said.append(f"**Rolled back** to version {promotion.rolled_back_to} on "
                    f"{promotion.rolled_back_at:%Y-%m-%d %H:%M} UTC: {promotion.rollback_reason}")
    return "\n\n".join([*([before] if before else []), *said])[:MOST]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
