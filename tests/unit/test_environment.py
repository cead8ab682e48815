"""The environments name the same versions, and the project names no others."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower().replace("_", "-")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    return {name_of(line): line.split("==")[1] for line in lines}


def dependencies() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {name_of(requirement) for requirement in project["dependencies"]}


def test_every_dependency_is_pinned():
    assert dependencies() <= set(pins())
    assert pins()["torch"] == pins()["torchaudio"] == "2.11.0"


def test_the_conda_environment_has_the_dependencies_with_their_pins():
    environment = yaml.safe_load((ROOT / "envs" / "speechmill.yaml").read_text())
    (packages,) = (item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert {name_of(package): package.split("==")[1] for package in packages} == {
        name: version for name, version in pins().items() if name in dependencies()
    }


def test_no_rule_sets_retries_itself():
    """A rule's own retries are honoured again inside an allocation: they belong in the profile. But for none at all."""
    for file in [ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")]:
        assert not re.search(r"^\s*retries: *[^0 ]", file.read_text(), re.MULTILINE), file


def test_the_package_imports_no_snakemake():
    for file in (ROOT / "speechmill").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) snakemake", file.read_text(), re.MULTILINE), file
