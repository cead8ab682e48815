"""What a corpus's terms allow to be published. Checked before anything is computed, and again before publishing."""

from __future__ import annotations

import re
from typing import Any

from speechmill.errors import ConfigError

OPENNESS = ("never", "private", "public")
NAMES_ITS_AUTHORS = re.compile(r"\b(CC-?BY|GFDL|ODC-BY|CDLA)", re.IGNORECASE)  # licences that ask for attribution


def check_policy(config: dict[str, Any]) -> None:
    """Compare `publish` with what `source` allows.

    Raises:
        ConfigError: one line per conflict, with what to do.
    """
    source, publish = config["source"], config["publish"]
    if publish["kind"] == "none":
        return
    problems = []
    allowed, wanted = source["may_publish"], publish["visibility"]
    if OPENNESS.index(wanted) > OPENNESS.index(allowed):
        instead = "set publish.kind none, for a run that ends with the report" if allowed == "never" else (
            "set publish.visibility private, or, where the licence of all its clips allows it, source.may_publish public"
        )  # fmt: skip
        problems.append(
            f"the terms of {config['dataset']} (source.may_publish: {allowed}) forbid a {wanted} copy: {instead}"
        )
    if wanted == "public" and source["license"] is None and not source["columns"].get("license"):
        problems.append("a public data set needs a licence: source.license, or a column of it (source.columns.license)")
    if wanted == "public" and NAMES_ITS_AUTHORS.search(source["license"] or "") and not source["attribution"]:
        problems.append(f"the licence {source['license']} asks for attribution: set source.attribution")
    if problems:
        raise ConfigError("\n".join(problems))
