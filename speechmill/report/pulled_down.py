"""Which criterion keeps clips from the ideal: what is behind the reason "closeness"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from speechmill.report.parts import Part

_COLUMNS = ("state", "criterion", "distance_share")


class PulledDown:
    """Counts the clips that closeness rejects, by the criterion with most of their distance to the ideal."""

    def __init__(self) -> None:
        self.clips: Counter[str] = Counter()

    def columns(self, names: Sequence[str]) -> Iterable[str]:
        return [name for name in _COLUMNS if name in names]

    def add(self, part: Part) -> None:
        if "distance_share" not in part.table.column_names:
            return  # ranked by an earlier version
        distant = part.has_state("rejected") & part.has_criterion("closeness")
        criteria = part.pieces[0].criteria
        shares = shares_of(part.table["distance_share"].filter(pa.array(distant)), len(criteria))
        most = np.nan_to_num(shares, nan=-1.0).argmax(1)
        self.clips.update(Counter(criteria[place] for place in most.tolist()))


def shares_of(column: pa.ChunkedArray, criteria: int) -> np.ndarray:
    """Return the column `distance_share` (N, criteria) as numbers, NaN where a metric is missing."""
    return pc.list_flatten(column.drop_null()).to_numpy().reshape(-1, max(criteria, 1))


def most_distant(row: Mapping[str, Any], criteria: Sequence[str]) -> dict[str, Any] | None:
    """Return {metric, scaled, share} of the criterion with most of a clip's distance to the ideal; None if unknown.

    Args:
        row: of a ranking table.
        criteria: metrics of the profile's criteria, in its order.
    """
    shares, scaled = row.get("distance_share"), row.get("scaled")
    if not shares or not scaled or len(shares) != len(criteria):
        return None
    place = max(range(len(shares)), key=lambda index: -1.0 if shares[index] is None else shares[index])
    if not shares[place]:
        return None  # at the ideal
    return {"metric": criteria[place], "scaled": scaled[place], "share": shares[place]}
