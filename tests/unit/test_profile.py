"""Ranking profiles: what is refused, what is frozen."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from speechmill.errors import ConfigError
from speechmill.ranking.profile import FrozenProfile, freeze, load_profile

RANKING = Path(__file__).parents[2] / "config" / "ranking"
LIGHT = [
    "input_snr_db", "dnsmos_p808", "input_reverb_decay_db_s", "input_bandwidth_hz", "input_clip_ratio",
    "input_loudness_lufs", "speech_ratio", "longest_pause_s", "denoise_removed_db", "snr_db",
]  # fmt: skip
FULL = [*LIGHT, "dnsmos_ovrl", "dnsmos_sig", "dnsmos_bak", "distillmos"]
GOOD = {
    "name": "mine",
    "version": 1,
    "description": "a test",
    "threshold": 0.5,
    "gates": [{"metric": "duration", "min": 1, "max": 30}, {"metric": "dnsmos_ovrl", "min": 2}],
    "groups": {
        "noise": {
            "weight": 3,
            "criteria": {
                "input_snr_db": {"low": 0, "high": 40, "direction": "benefit", "weight": 3},
                "dnsmos_bak": {"low": 1, "high": 4, "direction": "benefit"},
            },
        },
        "quality": {"weight": 1, "criteria": {"distillmos": {"low": 1, "high": 5, "direction": "benefit"}}},
        "speech": {
            "weight": 1,
            "criteria": {
                "speech_ratio": {"low": 0.2, "high": 1, "direction": "target", "ideal": [0.6, 1]},
                "input_clip_ratio": {"low": 0.00001, "high": 0.01, "direction": "cost", "scale": "log10"},
            },
        },
    },
}


def write(folder: Path, profile: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(profile if isinstance(profile, str) else yaml.safe_dump(profile), encoding="utf-8")
    return path


def load(folder: Path, profile: object) -> dict:
    return load_profile(write(folder, profile), RANKING, FULL)


@pytest.mark.parametrize("name", ["asr", "tts"])
@pytest.mark.parametrize("metrics", [LIGHT, FULL])
def test_shipped_profiles_load_and_freeze(name, metrics):
    frozen = freeze(load_profile(name, RANKING, FULL), metrics)
    assert frozen.name == name
    assert sum(criterion.weight for criterion in frozen.criteria) == pytest.approx(1)
    assert bool(frozen.dropped_criteria) == (metrics is LIGHT)
    noise = sum(criterion.weight for criterion in frozen.criteria if criterion.group == "noise")
    assert noise == pytest.approx(0.5 if name == "asr" else 0.25), "a group keeps its weight whatever is dropped of it"


def test_weights_by_group_and_defaults(tmp_path):
    frozen = freeze(load(tmp_path, GOOD), FULL)
    weights = {criterion.metric: criterion.weight for criterion in frozen.criteria}
    assert weights == pytest.approx(
        {"input_snr_db": 0.45, "dnsmos_bak": 0.15, "distillmos": 0.2, "speech_ratio": 0.1, "input_clip_ratio": 0.1}
    )
    assert frozen.min_coverage == 0.8
    assert frozen.dropped_criteria == frozen.dropped_gates == ()


def test_metrics_that_are_not_measured_are_dropped_and_named(tmp_path):
    frozen = freeze(load(tmp_path, GOOD), LIGHT)
    assert frozen.dropped_criteria == ("distillmos", "dnsmos_bak")
    assert frozen.dropped_gates == ("dnsmos_ovrl",)
    assert [gate.metric for gate in frozen.gates] == ["duration"]
    weights = {criterion.metric: criterion.weight for criterion in frozen.criteria}
    assert weights == pytest.approx({"input_snr_db": 0.75, "speech_ratio": 0.125, "input_clip_ratio": 0.125})
    with pytest.raises(ConfigError, match="ranks by nothing that this run measures"):
        freeze(load(tmp_path, GOOD), ["snr_db"])


def test_threshold_override(tmp_path):
    profile = load(tmp_path, GOOD)
    assert freeze(profile, FULL, 0.0).threshold == 0.0
    assert freeze(profile, FULL, None).threshold == 0.5
    with pytest.raises(ConfigError, match="between 0 and 1"):
        freeze(profile, FULL, 1.5)


def test_weights_of_groups_replace_the_profiles_own(tmp_path):
    profile = load(tmp_path, GOOD)
    changed = freeze(profile, FULL, None, {"noise": 0, "quality": None, "speech": 3})
    by_hand = copy.deepcopy(GOOD)
    by_hand["groups"]["noise"]["weight"], by_hand["groups"]["speech"]["weight"] = 0, 3
    assert changed == freeze(load(tmp_path, by_hand), FULL)
    assert freeze(profile, FULL, None, {}) == freeze(profile, FULL), "and the profile is as it was"
    with pytest.raises(ConfigError, match=r'no group \'nois\': did you mean "noise".*noise 3, quality 1, speech 1'):
        freeze(profile, FULL, None, {"nois": 1})
    for weights in ({"noise": -1}, {"noise": float("nan")}, {"noise": float("inf")}):
        with pytest.raises(ConfigError, match=r"rank\.weights\.noise is .*: a weight is 0 or more"):
            freeze(profile, FULL, None, weights)
    with pytest.raises(ConfigError, match="sum to 0"):
        freeze(profile, FULL, None, dict.fromkeys(GOOD["groups"], 0))


def test_hash_is_stable_and_changes_with_every_value(tmp_path):
    frozen = freeze(load(tmp_path, GOOD), FULL)
    reordered = {key: GOOD[key] for key in reversed(GOOD)}
    assert freeze(load(tmp_path, reordered), reversed(FULL)).sha256 == frozen.sha256
    changed = copy.deepcopy(GOOD)
    changed["groups"]["noise"]["criteria"]["input_snr_db"]["high"] = 41
    assert freeze(load(tmp_path, changed), FULL).sha256 != frozen.sha256
    assert freeze(load(tmp_path, GOOD), FULL, 0.6).sha256 != frozen.sha256
    assert freeze(load(tmp_path, GOOD), LIGHT).sha256 != frozen.sha256


def test_json_round_trip_and_tampering(tmp_path):
    frozen = freeze(load(tmp_path, GOOD), LIGHT)
    text = json.dumps(frozen.to_json())
    assert FrozenProfile.from_json(json.loads(text)) == frozen
    assert json.loads(text) == frozen.to_json()
    value = frozen.to_json()
    value["threshold"] = 0.1
    with pytest.raises(ConfigError, match="edited by hand"):
        FrozenProfile.from_json(value)
    for broken in ({}, {"gates": []}, [], frozen.to_json() | {"gates": [{"nonsense": 1}]}):
        with pytest.raises(ConfigError, match="cannot be read"):
            FrozenProfile.from_json(broken)


def change(path: str, value: object):
    def apply(profile: dict) -> None:
        *parents, last = path.split(".")
        for key in parents:
            profile = profile[int(key) if isinstance(profile, list) else key]
        profile[last] = value

    return apply


SNR = "groups.noise.criteria.input_snr_db."
QUALITY = "groups.quality.criteria."
ANY = {"low": 1, "high": 4, "direction": "benefit"}


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (change("treshold", 1), 'unknown setting treshold: did you mean "threshold"?'),
        (change("threshold", 1.5), "threshold: 1.5 is greater than the maximum of 1"),
        (change("threshold", float("nan")), "threshold must be a finite number"),
        (change(SNR + "low", 40), "low (40) must be below high (40)"),
        (change(SNR + "high", float("inf")), "input_snr_db.high must be a finite number"),
        (change(SNR + "high", "1e-5"), 'is the text "1e-5": YAML reads a number only with a dot, such as 1.0e-5'),
        (change(SNR + "weight", -1), "-1 is less than the minimum of 0"),
        (change(SNR + "direction", "up"), "direction is 'up': valid: benefit, cost, target"),
        (change(SNR + "ideal", [1, 2]), "only a target has one"),
        (change(SNR + "scale", "log10"), "low (0) must be above 0 on a log10 scale"),
        (change("groups.speech.criteria.speech_ratio.ideal", [0.6, 1.1]), "must be an interval within low"),
        (change("groups.speech.criteria.speech_ratio.ideal", [0.9, 0.6]), "must be an interval within low"),
        (change("groups.speech.criteria.speech_ratio.ideal", None), "a target needs an ideal interval"),
        (change("groups.quality.criteria.distillmos.weight", 0), "groups.quality: all its criteria have weight 0"),
        (change(QUALITY + "dnsmos_bak", ANY), "already in group noise"),
        (change(QUALITY + "distilmos", ANY), 'did you mean "distillmos"?'),
        (change("groups", {}), "groups: {} should be non-empty"),
        (change("gates", [{"metric": "input_snr", "min": 1}]), "metric 'input_snr', did you mean \"input_snr_db\"?"),
        (change("gates", [{"metric": "snr_db"}]), "gates.0 (snr_db) has neither min nor max"),
        (change("gates", [{"metric": "snr_db", "min": 2, "max": 1}]), "min (2) is above max (1)"),
        (change("gates", [{"metric": "snr_db", "min": 2}, {"metric": "snr_db", "max": 3}]), "a second gate on snr_db"),
        (change("gates", 3), "gates is 3: expected array"),
        (change("groups.noise", 3), "groups.noise is 3: expected object"),
        (change("groups.noise.criteria", [1]), "groups.noise.criteria is [1]: expected object"),
    ],
)  # fmt: skip
def test_refused_profiles(tmp_path, apply, message):
    profile = copy.deepcopy(GOOD)
    apply(profile)
    with pytest.raises(ConfigError) as error:
        load(tmp_path, profile)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the profile is null: expected object"),
        ("[1, 2]", "the profile is [1, 2]: expected object"),
        ("{}", "missing setting groups"),
        ("threshold: {2020-01-01: 1}\n", "threshold is {datetime.date(2020, 1, 1): 1}: expected number"),
        ("name: [", "cannot be read"),
        ("name: a\nname: b\n", "'name' is there twice"),
        ("? [a, b]\n: 1\n", "cannot be read"),
        ("true: 1\n", "unknown setting True"),
    ],
)
def test_refused_files(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert message in str(error.value)


def test_all_problems_are_named_at_once(tmp_path):
    profile = copy.deepcopy(GOOD)
    del profile["description"]
    change(SNR + "low", 99)(profile)
    change("groups.quality.weight", -1)(profile)
    change("gates.0.metric", "durations")(profile)
    with pytest.raises(ConfigError) as error:
        load(tmp_path, profile)
    assert str(error.value).count("\n  - ") == 4


def test_each_missing_setting_is_named_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, "{}")
    assert str(error.value).count("missing setting") == 5


def test_unknown_profile_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match='did you mean "asr"'):
        load_profile("asrr", RANKING, FULL)
    with pytest.raises(ConfigError, match="no ranking profile"):
        load_profile("schema", RANKING, FULL)
