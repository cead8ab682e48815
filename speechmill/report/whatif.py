"""What another threshold and other weights would accept: the numbers behind the sliders of the page.

Over the clips that passed all gates, for only they can be moved by either. With the weights as they are, a histogram
of closeness gives every threshold exactly. For other weights there is a sample, stratified by closeness; the page
decides its clips under both weights and adds the difference to the exact number, so that its error is that of the
difference alone. Where a band has no more clips than are taken of it, it is exact.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from speechmill.ranking.profile import FrozenProfile
from speechmill.ranking.topsis import scale_all
from speechmill.report.parts import Draw, Part, read_parts

STEPS = 200  # thresholds that the histogram tells apart
BANDS = 20  # of closeness, equally wide
PER_BAND = 400  # clips
MISSING = 65_535  # in a column of scaled values, which are 0 .. 65,534
GRID = np.arange(STEPS + 1) / STEPS


def whatif(ranking_files: Sequence[Path], profile: FrozenProfile) -> dict[str, Any]:
    """What the page's script needs, ready for JSON: see `WhatIf.result`."""
    reader = WhatIf(profile)
    read_parts(ranking_files, reader)
    return reader.result()


class WhatIf:
    """Collects the histogram of closeness and the sample of clips over the ranking tables."""

    def __init__(self, profile: FrozenProfile):
        self._profile = profile
        self._whole = {c.group: sum(o.weight for o in profile.criteria if o.group == c.group) for c in profile.criteria}
        self._moving = {group for group, weight in self._whole.items() if weight > 0}
        self._criteria = tuple(criterion for criterion in profile.criteria if criterion.group in self._moving)
        self._metrics = [criterion.metric for criterion in self._criteria]
        self._clips, self._seconds = np.zeros(STEPS + 1, np.int64), np.zeros(STEPS + 1)
        self._bands = Draw(BANDS, PER_BAND)

    def columns(self, names: Sequence[str]) -> Iterable[str]:
        return ["id", "state", "criterion", "closeness", "duration", *self._metrics]

    def add(self, part: Part) -> None:
        """Count the clips whose closeness decided, and draw from them."""
        judged = (part.has_state("accepted") | part.has_criterion("closeness")) & part.has_closeness
        step = np.searchsorted(GRID, part.closeness[judged], side="right") - 1
        self._clips += np.bincount(step, minlength=STEPS + 1)
        self._seconds += np.bincount(step, np.nan_to_num(part.numbers("duration")[judged]), STEPS + 1)
        band = np.full(len(judged), -1)
        band[judged] = np.minimum(step * BANDS // STEPS, BANDS - 1)
        self._bands.add(part, band, list(dict.fromkeys(["id", "duration", *self._metrics])))

    def result(self) -> dict[str, Any]:
        """What the page's script needs, ready for JSON.

        Returns `threshold, min_coverage, profile`; `groups` [{name, weight}] and `criteria` [{group, share}], the
        share within the group; `fixed`, groups whose weight is 0, so that the shares within are not known; `clips` and
        `seconds` [201]: of closeness k/200 up to the next step; `bands` [{clips, sampled}] and the sample in their
        order: `scaled` (uint16, clip by clip, criteria inside) and `sample_seconds` (float32), base64 of little-endian
        bytes. The sample is that of the smallest reversed ids of each band: the same whatever the order or number of
        files.
        """
        profile, whole = self._profile, self._whole
        bands = self._bands.pools
        sample = pa.concat_tables([band.rows for band in bands if band.rows is not None] or [pa.table({})])
        values = {name: _floats(sample[name]) for name in self._metrics} if len(sample) else {}
        scaled = scale_all(values, self._criteria, len(sample)) if values else np.empty((0, len(self._metrics)))
        return {
            "profile": profile.name,
            "threshold": profile.threshold,
            "min_coverage": profile.min_coverage,
            "groups": [
                {"name": name, "weight": whole[name]} for name in sorted(self._moving, key=lambda g: (-whole[g], g))
            ],
            "fixed": sorted(whole.keys() - self._moving),
            "criteria": [{"group": c.group, "share": c.weight / whole[c.group]} for c in self._criteria],
            "clips": self._clips.tolist(),
            "seconds": np.round(self._seconds, 3).tolist(),
            "bands": [
                {"clips": size, "sampled": 0 if band.rows is None else len(band.rows)}
                for size, band in zip(self._bands.sizes.tolist(), bands, strict=True)
            ],
            "scaled": _packed(np.where(np.isnan(scaled), MISSING, np.rint(scaled * (MISSING - 1))), "<u2"),
            "sample_seconds": _packed(
                np.nan_to_num(_floats(sample["duration"])) if len(sample) else np.empty(0), "<f4"
            ),
        }


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return pc.cast(column, pa.float64()).to_numpy()


def _packed(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode("ascii")
