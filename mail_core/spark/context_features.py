"""Local time: the one derivation of context features from a timestamp, shared by features and scoring.

Engine-free (Arrow and the standard library), so that no session's time zone enters it.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FIRST_WEEKEND_DAY = 6
"""Saturday, with Monday as 1."""
_EPOCH = date(1970, 1, 1)


def local_moment(day: date, clock: time, timezone: str) -> datetime:
    """The instant of `clock` on the local day `day` (where the clock shows it twice, the first time)."""
    return datetime.combine(day, clock, tzinfo=ZoneInfo(timezone))


def microseconds(moment: datetime) -> int:
    """Microseconds since the epoch of an instant, without a float in between."""
    return (moment - datetime(1970, 1, 1, tzinfo=ZoneInfo("UTC"))) // timedelta(microseconds=1)


def earliest_moments(days_B: pa.Array, behavior_days: int, timezone: str) -> np.ndarray:
    """Where the look-back of impressions on the local days `days_B` (date32) begins: microseconds (B,), inclusive."""
    unique_U, inverse_B = np.unique(days_B.cast(pa.int32()).to_numpy(), return_inverse=True)
    starts_U = [microseconds(local_moment(_EPOCH + timedelta(days=int(day) - behavior_days), time(), timezone))
                for day in unique_U]
    return np.array(starts_U, dtype=np.int64)[inverse_B]


def derive(derivation: str, times_B: pa.Array, timezone: str) -> pa.Array:
    """Local hour (0-23), day_of_week (1 Monday .. 7) or day_part of timestamps, int32 (B,).

    A day part is a quarter of the day: 0-3 from midnight on Monday to Friday, 4-7 on Saturday and Sunday.
    """
    local_B = times_B.cast(pa.timestamp("us", tz=timezone))
    if derivation == "hour":
        return pc.hour(local_B).cast(pa.int32())
    weekday_B = pc.day_of_week(local_B, count_from_zero=False, week_start=1)
    if derivation == "day_of_week":
        return weekday_B.cast(pa.int32())
    assert derivation == "day_part", derivation
    weekend_B = pc.greater_equal(weekday_B, FIRST_WEEKEND_DAY).cast(pa.int64())
    return pc.add(pc.multiply(weekend_B, 4), pc.divide(pc.hour(local_B), 6)).cast(pa.int32())
