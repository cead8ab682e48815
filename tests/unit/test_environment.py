"""The environments name the same versions, and the project names no others."""

import re
import subprocess
import sys
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


def extra(name: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {name_of(requirement) for requirement in project["optional-dependencies"][name]}


def test_every_dependency_is_pinned():
    assert dependencies() <= set(pins())
    assert pins()["torch"] == pins()["torchaudio"] == "2.11.0"  # the versions that belong together


def test_the_conda_environment_has_the_dependencies_with_their_pins():
    environment = yaml.safe_load((ROOT / "envs" / "speechmill.yaml").read_text())
    (packages,) = (item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert {name_of(package): package.split("==")[1] for package in packages} == {
        name: version for name, version in pins().items() if name in dependencies() | extra("full")
    }


def test_no_rule_sets_retries_itself():
    """A rule's own retries are honoured again inside an allocation: they belong in the profile. But for none at all."""
    for file in [ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")]:
        assert not re.search(r"^\s*retries: *[^0 ]", file.read_text(), re.MULTILINE), file


def test_the_package_imports_no_snakemake():
    for file in (ROOT / "speechmill").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) snakemake", file.read_text(), re.MULTILINE), file


def test_the_image_and_the_apptainer_recipe_install_the_same_way_and_hold_the_same_files():
    """Neither can be built in a test: what they copy must be there, and the one installer is what both run."""
    lines = (ROOT / "envs" / "Containerfile").read_text().splitlines()
    copied = [line.split()[1:] for line in lines if line.startswith("COPY ")]
    image = {Path(source) for *sources, _ in copied for source in sources}
    recipe = (ROOT / "envs" / "speechmill.def").read_text()
    section = re.search(r"^%files\n((?:    .+\n)+)", recipe, re.MULTILINE)[1]
    assert {Path(line.split()[0]) for line in section.splitlines()} == image
    assert all((ROOT / path).exists() for path in image)
    bases = re.findall(r"python:\S+", "\n".join(lines)), re.findall(r"python:\S+", recipe)
    assert bases[0] == bases[1] != []
    assert "sh /opt/speechmill/envs/install.sh" in recipe
    assert any(line.startswith("RUN sh /opt/speechmill/envs/install.sh full,kubernetes") for line in lines)


def test_what_the_environments_install_besides_is_pinned():
    assert extra("kubernetes") | extra("full") <= set(pins())


def test_the_makefile_starts_and_stops_the_test_cluster_by_a_command_that_exists():
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "tests.slurm.cluster" in line]
    commands = [line.split()[1:] for line in lines]
    assert [command[-1] for command in commands] == ["start", "stop"]
    for command in commands:  # without an action, it prints its usage
        done = subprocess.run([sys.executable, *command[:-1]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, "start | stop | status" in done.stderr) == (2, True), done.stderr
