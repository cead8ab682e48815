"""Terms of use: check that a corpus may be published as configured.

This is checked before anything is computed, and again before publication.
"""

from __future__ import annotations

import re
from typing import Any

from speechmill.errors import ConfigError

VISIBILITIES = ("never", "private", "public")  # from strict to open
NEEDS_ATTRIBUTION = re.compile(r"\b(CC-?BY|GFDL|ODC-BY|CDLA)", re.IGNORECASE)  # licences that require attribution


def check_policy(config: dict[str, Any]) -> None:
    """Check the section `publish` against `source.may_publish` and the licence.

    Raises:
        ConfigError: one line per conflict, with what to do.
    """
    source, publish = config["source"], config["publish"]
    if publish["kind"] == "none":
        return
    problems = []
    allowed, wanted = source["may_publish"], publish["visibility"]
    if VISIBILITIES.index(wanted) > VISIBILITIES.index(allowed):
        instead = "set publish.kind none; the run then ends with the report" if allowed == "never" else (
            "set publish.visibility private; or set source.may_publish public if the licence of all clips allows it"
        )  # fmt: skip
        problems.append(
            f"the terms of {config['dataset']} (source.may_publish: {allowed}) forbid a {wanted} copy: {instead}"
        )
    if wanted == "public" and source["license"] is None and not source["columns"].get("license"):
        problems.append(
            "a public data set needs a licence: set source.license, or source.columns.license to a column that has it"
        )
    if wanted == "public" and NEEDS_ATTRIBUTION.search(source["license"] or "") and not source["attribution"]:
        problems.append(f"the licence {source['license']} requires attribution: set source.attribution")
    if problems:
        raise ConfigError("\n".join(problems))
