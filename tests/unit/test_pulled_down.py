"""Which criterion keeps clips from the ideal, counted and clip by clip."""

from collections import Counter

import pyarrow.parquet as pq

from speechmill.report.parts import read_parts
from speechmill.report.pulled_down import PulledDown, most_distant

from ..ranked_run import RankedRun


def test_every_clip_that_closeness_rejects_is_counted_with_its_most_distant_criterion(tmp_path):
    run = RankedRun(tmp_path, clips=800)
    paths = [run.ranking(batch) for batch in run.batches]
    reader = PulledDown()
    read_parts(paths, reader)
    criteria = [criterion.metric for criterion in run.profile.criteria]
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    distant = [row for row in rows if row["criterion"] == "closeness"]
    expected = [most_distant(row, criteria) for row in distant]
    assert reader.clips == Counter(one["metric"] for one in expected) != Counter()
    for row, one in zip(distant, expected, strict=True):
        assert f"mostly {one['metric']}: scaled {one['scaled']:.2f}" in row["message"]


def test_a_table_of_an_earlier_version_has_nothing_to_say(tmp_path):
    run = RankedRun(tmp_path, clips=100)
    path = run.ranking("b0")
    pq.write_table(pq.read_table(path).drop(["scaled", "distance_share"]), path)
    reader = PulledDown()
    read_parts([path], reader)
    assert not reader.clips
    assert most_distant({"closeness": 0.5}, ["snr_db"]) is None
    assert most_distant({"scaled": [1.0], "distance_share": [0.0]}, ["snr_db"]) is None
