"""What another threshold and other weights would accept: the numbers behind the sliders of the page.

Over the clips that passed all gates, for only they can be moved by either. With the weights as they are, a histogram
of closeness gives every threshold exactly. For other weights there is a sample, stratified by closeness; the page
decides its clips under both weights and adds the difference to the exact number, so that its error is that of the
difference alone. Where a band has no more clips than are taken of it, it is exact.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.ranking.profile import FrozenProfile
from speechmill.ranking.topsis import scale_all
from speechmill.report.smallest import Smallest

READ_ROWS = 65_536
STEPS = 200  # thresholds that the histogram tells apart
BANDS = 20  # of closeness, equally wide
PER_BAND = 400  # clips
MISSING = 65_535  # in a column of scaled values, which are 0 .. 65,534
GRID = np.arange(STEPS + 1) / STEPS


def whatif(ranking_files: Sequence[Path], profile: FrozenProfile) -> dict[str, Any]:
    """What the page's script needs, ready for JSON.

    Returns `threshold, min_coverage, profile`; `groups` [{name, weight}] and `criteria` [{group, share}], the
    share within the group; `fixed`, groups whose weight is 0, so that the shares within are not known; `clips` and `seconds` [201]: of closeness k/200 up to the next step; `bands` [{clips,
    sampled}] and the sample in their order: `scaled` (uint16, clip by clip, criteria inside) and `sample_seconds`
    (float32), base64 of little-endian bytes. The sample is that of the smallest reversed ids of each band: the same
    whatever the order or number of files.
    """
    whole = {c.group: sum(o.weight for o in profile.criteria if o.group == c.group) for c in profile.criteria}
    moving = {group for group, weight in whole.items() if weight > 0}
    criteria = tuple(criterion for criterion in profile.criteria if criterion.group in moving)
    metrics = [criterion.metric for criterion in criteria]
    columns = list(dict.fromkeys(["id", "state", "criterion", "closeness", "duration", *metrics]))
    clips, seconds = np.zeros(STEPS + 1, np.int64), np.zeros(STEPS + 1)
    sizes = np.zeros(BANDS, np.int64)
    bands = [Smallest(PER_BAND) for _ in range(BANDS)]
    for path in ranking_files:
        with pq.ParquetFile(path) as file:
            for part in file.iter_batches(batch_size=READ_ROWS, columns=columns):
                table = _judged(pa.Table.from_batches([part]))
                closeness = table["closeness"].to_numpy()
                duration = np.nan_to_num(pc.cast(table["duration"], pa.float64()).to_numpy())
                step = np.searchsorted(GRID, closeness, side="right") - 1
                clips += np.bincount(step, minlength=STEPS + 1)
                seconds += np.bincount(step, duration, STEPS + 1)
                which = np.minimum(step * BANDS // STEPS, BANDS - 1)
                table = table.append_column("key", pc.utf8_reverse(table["id"]))
                for number in np.unique(which):
                    bands[number].offer(table.filter(pa.array(which == number)))
                sizes += np.bincount(which, minlength=BANDS)
    sample = pa.concat_tables([band.rows for band in bands if band.rows is not None] or [pa.table({})])
    values = {name: _floats(sample[name]) for name in metrics} if len(sample) else {}
    scaled = scale_all(values, criteria, len(sample)) if values else np.empty((0, len(metrics)))
    return {
        "profile": profile.name,
        "threshold": profile.threshold,
        "min_coverage": profile.min_coverage,
        "groups": [{"name": name, "weight": whole[name]} for name in sorted(moving, key=lambda g: (-whole[g], g))],
        "fixed": sorted(whole.keys() - moving),
        "criteria": [{"group": c.group, "share": c.weight / whole[c.group]} for c in criteria],
        "clips": clips.tolist(),
        "seconds": np.round(seconds, 3).tolist(),
        "bands": [
            {"clips": size, "sampled": 0 if band.rows is None else len(band.rows)}
            for size, band in zip(sizes.tolist(), bands, strict=True)
        ],
        "scaled": _packed(np.where(np.isnan(scaled), MISSING, np.rint(scaled * (MISSING - 1))), "<u2"),
        "sample_seconds": _packed(np.nan_to_num(_floats(sample["duration"])) if len(sample) else np.empty(0), "<f4"),
    }


def _judged(table: pa.Table) -> pa.Table:
    """The clips whose closeness decided."""
    accepted = pc.equal(table["state"], "accepted")
    below = pc.fill_null(pc.equal(table["criterion"], "closeness"), False)
    return table.filter(pc.and_(pc.or_(accepted, below), pc.is_valid(table["closeness"])))


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return pc.cast(column, pa.float64()).to_numpy()


def _packed(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode("ascii")
