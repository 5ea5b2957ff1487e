"""The paper's own figures, as printed in its Tables 1 to 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

PUBLIC, INDUSTRIAL = DATASETS = ("public", "industrial")
"""Alimama, and NetEase Cloud Music's own."""


@dataclass(frozen=True)
class PaperFigures:
    """One method on one dataset, for new or old users; RI in per cent over the table's own reference."""

    auc: float
    auc_ri: float
    gauc: float | None = None
    """None where the table has no GAUC."""
    gauc_ri: float | None = None


PaperTable = Mapping[str, Mapping[str, Mapping[str, PaperFigures]]]
"""Method -> dataset -> cohort -> figures."""

TABLE_1: Mapping[str, tuple[str, str]] = {
    "# All users": ("1,141,729", "613,221"), "# New users": ("456,691", "282,081"), "# Items": ("846,811", "52,831"),
    "# User attributes": ("9", "21"), "# Context features": ("4", "75"),
    "# Avg. length of behavior sequence": ("63", "79"), "# Item features": ("6", "105")}
"""Line -> public, industrial."""


def _both(public_new: PaperFigures, public_old: PaperFigures, industrial_new: PaperFigures,
          industrial_old: PaperFigures) -> dict[str, dict[str, PaperFigures]]:
    return {PUBLIC: {"new": public_new, "old": public_old}, INDUSTRIAL: {"new": industrial_new, "old": industrial_old}}


_F = PaperFigures
TABLE_2: PaperTable = {
    "EmbLR": _both(_F(.5800, 0, .5607, 0), _F(.6252, 0, .5892, 0), _F(.6682, 0, .6365, 0), _F(.7728, 0, .6419, 0)),
    "LLAE": _both(_F(.5854, .93, .5646, .69), _F(.6253, .01, .5892, 0),
                  _F(.6713, .46, .6384, .29), _F(.7737, .11, .6422, .05)),
    "BaseDNN": _both(_F(.5862, 0, .5658, 0), _F(.6271, 0, .5897, 0), _F(.6771, 0, .6380, 0), _F(.7782, 0, .6459, 0)),
    "MetaEmb": _both(_F(.5911, .84, .5682, .42), _F(.6273, .03, .5900, .05),
                     _F(.6834, .93, .6404, .37), _F(.7788, .07, .6466, .10)),
    "MAIL-Base": _both(_F(.5934, 1.22, .5710, .91), _F(.6271, 0, .5898, .02),
                       _F(.6849, 1.15, .6413, .51), _F(.7788, .07, .6460, .01)),
    "DMR": _both(_F(.5879, 0, .5668, 0), _F(.6302, 0, .5911, 0), _F(.6823, 0, .6420, 0), _F(.7833, 0, .6551, 0)),
    "MAIL-DMR": _both(_F(.5958, 1.34, .5733, 1.14), _F(.6302, 0, .5915, .06),
                      _F(.6895, 1.05, .6465, .70), _F(.7838, .06, .6558, .10)),
}
"""RI over EmbLR (LLAE), BaseDNN (MetaEmb, MAIL-Base) or DMR (MAIL-DMR)."""

TABLE_3: PaperTable = {
    "BaseDNN": _both(_F(.5862, -1.21), _F(.6271, 0), _F(.6771, -1.13), _F(.7788, 0)),
    "MAIL-None": _both(_F(.5834, -1.68), _F(.6263, -.12), _F(.6755, -1.37), _F(.7782, -.07)),
    "MAIL-Single": _both(_F(.5844, -1.51), _F(.6267, -.06), _F(.6764, -1.24), _F(.7784, -.05)),
    "MAIL-Dual": _both(_F(.5897, -.62), _F(.6272, .01), _F(.6802, -.68), _F(.7788, 0)),
    "MAIL-Base": _both(_F(.5934, 0), _F(.6271, 0), _F(.6849, 0), _F(.7788, 0)),
}
"""RI over MAIL-Base. Old users of BaseDNN, industrial, stand here with .7788 and in Table 2 with .7782."""
