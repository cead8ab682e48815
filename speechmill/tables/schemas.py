"""The Parquet schemas that the stages exchange.

Metric columns (float64, null if missing) are appended by name; `speechmill.metrics` declares them. Enhanced shards,
scores and rankings name the models that made them in the schema's metadata (`with_models`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import pyarrow as pa

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

# Identity and origin of a clip: the first columns of every table with one row per clip.
IDENTITY = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("source", pa.string()),  # name of the corpus
    pa.field("source_id", pa.string()),  # the clip's id in the corpus
    pa.field("source_split", pa.string()),
    pa.field("source_file", pa.string()),  # path below the source's root
    pa.field("source_row", pa.int64()),  # row of a table; null if each file is a clip
    pa.field("source_member", pa.string()),  # of an archive
]

# Speaker attributes from the corpus, counted in the report. The published tables do not have these columns.
PERSONAL = [pa.field("gender", pa.string()), pa.field("age", pa.string())]

MANIFEST = pa.schema(
    [
        *IDENTITY,
        pa.field("size", pa.int64()),  # bytes of the encoded clip, null if unknown before reading
        pa.field("sha256", pa.string()),  # of the encoded clip, null if the source file's checksum is used
        pa.field("header_duration", pa.float64()),  # seconds from the header, null if unreadable
        pa.field("text", pa.string()),
        pa.field("language", pa.string()),
        pa.field("speaker_id", pa.string()),
        pa.field("license", pa.string()),
        pa.field("extra", pa.string()),  # the corpus's other columns as one JSON object
    ]
)

LEDGER = pa.schema(
    [
        *IDENTITY,
        pa.field("state", pa.string(), nullable=False),  # passed | rejected | errored
        pa.field("criterion", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("error_class", pa.string()),
        pa.field("message", pa.string()),
        pa.field("input_duration", pa.float64()),  # decoded seconds, null if not decoded
        pa.field("input_sha256", pa.string()),  # of the encoded input
        pa.field("pcm_sha256", pa.string()),  # of the decoded mono samples and their rate
        pa.field("fingerprint", pa.binary()),  # audio fingerprint, for near duplicates
        pa.field("utterance", pa.string()),  # equal for the same sentence of the same speaker
        pa.field("text", pa.string()),
        pa.field("language", pa.string()),
        pa.field("speaker_id", pa.string()),
        *PERSONAL,
        pa.field("license", pa.string()),
    ]
)

ENHANCED = pa.schema(
    [
        *IDENTITY,
        pa.field("audio", AUDIO),  # what is published: FLAC, mono, 16 bit
        pa.field("original", AUDIO),  # the clip without denoising; null if `variant` is original
        pa.field("text", pa.string()),  # as in the corpus
        pa.field("text_norm", pa.string()),  # speechmill.transcript.normalize
        pa.field("language", pa.string()),
        pa.field("duration", pa.float64()),  # seconds of `audio`
        pa.field("sampling_rate", pa.int32()),
        pa.field("speaker_id", pa.string()),
        pa.field("license", pa.string()),
        pa.field("extra", pa.string()),
        pa.field("variant", pa.string()),  # original | enhanced
        pa.field("variant_reason", pa.string()),  # the guard's criterion that decided
        pa.field("input_channel", pa.string()),  # "mean" of the channels, or the number of one, from 1
        pa.field("offset_removed", pa.float64()),  # mean that was subtracted from the input's samples, full scale 1
        pa.field("trim_start_s", pa.float64()),  # seconds cut from the decoded input's start
        pa.field("trim_end_s", pa.float64()),  # ... and from its end
        pa.field("gain_db", pa.float64()),
        pa.field("input_sha256", pa.string()),
        pa.field("pcm_sha256", pa.string()),
        pa.field("input_duration", pa.float64()),
        pa.field("input_sampling_rate", pa.int32()),
        pa.field("input_channels", pa.int32()),
        pa.field("input_codec", pa.string()),  # container/subtype, such as FLAC/PCM_16
        pa.field("source_revision", pa.string()),
        pa.field("enhancer", pa.string()),  # name, version and level
        pa.field("enhancer_sha256", pa.string()),  # of its weights
        pa.field("config_sha256", pa.string()),  # of the enhance section
        pa.field("code_version", pa.string()),
    ]
)

RANKING = pa.schema(
    [
        *IDENTITY,
        pa.field("batch", pa.string()),
        pa.field("text", pa.string()),
        pa.field("language", pa.string()),
        pa.field("speaker_id", pa.string()),
        *PERSONAL,
        pa.field("license", pa.string()),
        pa.field("input_duration", pa.float64()),
        pa.field("duration", pa.float64()),
        pa.field("variant", pa.string()),
        pa.field("variant_reason", pa.string()),
        pa.field("state", pa.string(), nullable=False),  # accepted | rejected | errored | duplicate
        pa.field("criterion", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("error_class", pa.string()),
        pa.field("message", pa.string()),
        pa.field("duplicate_of", pa.string()),
        pa.field("near_duplicate_of", pa.string()),  # a clip of this or another run with the same sound
        pa.field("closeness", pa.float64()),  # 0..1, null if not ranked
        pa.field("coverage", pa.float64()),  # share of the profile's weight that was measured
        pa.field("failed_gates", pa.list_(pa.string())),
        # One value per criterion, in the order of the profile; null where closeness is null or the metric is missing.
        pa.field("scaled", pa.list_(pa.float32())),  # 0..1, 1 is best
        pa.field("distance_share", pa.list_(pa.float32())),  # 0..1, share of the squared distance to the ideal
    ]
)
EXPLAINED = frozenset(["scaled", "distance_share"])  # not published: they follow from the metrics and the profile


def with_models(schema: pa.Schema, models: Mapping[str, str]) -> pa.Schema:
    """Return the schema with the models (name -> sha256 or version) that computed a file."""
    return schema.with_metadata({"models": json.dumps(models, sort_keys=True)})


def models_of(schema: pa.Schema) -> dict[str, str]:
    """Return the models that `with_models` wrote; empty if none."""
    return json.loads((schema.metadata or {}).get(b"models", b"{}"))


def ranking_schema(metrics: Iterable[str]) -> pa.Schema:
    """Return `RANKING` with a float64 column per metric, in the given order."""
    return pa.schema([*RANKING, *(pa.field(name, pa.float64()) for name in metrics)])


def scores_schema(metrics: Iterable[str]) -> pa.Schema:
    """Return `ranking_schema` without `PERSONAL` and `EXPLAINED`: the published columns of every clip."""
    return pa.schema([f for f in ranking_schema(metrics) if f not in PERSONAL and f.name not in EXPLAINED])
