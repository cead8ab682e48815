"""Publish targets: none, a folder, or the Hugging Face Hub. The only module that asks for `publish.kind`.

The Snakefile imports this module while it is parsed. Therefore the methods import the publishing code when it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechmill.errors import SpeechmillError
from speechmill.publish.order import shuffled_by
from speechmill.storage.run_folder import run_folder

if TYPE_CHECKING:
    from speechmill.publish.survey import Batch


class NoTarget:
    """Nothing is published: the run ends with its report."""

    publishes = False
    copies = 0  # how often the published audio is on this file system
    sends_ahead = False  # whether a batch is sent as soon as it is scored
    deletes_audio = False  # whether enhanced shards are deleted after publication, and restored when needed
    needs_network = False  # whether its jobs have to run on a host with network access

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.kind: str = config["publish"]["kind"]
        # The file that the last job of the run writes.
        self.goal = "published/UPLOADED.json" if self.publishes else "report/summary.json"

    @staticmethod
    def address(sentinel: Mapping[str, Any]) -> str:
        """Where the data set is, for a person; `sentinel` is the content of published/UPLOADED.json."""
        return str(Path(sentinel["target"]).resolve())

    @staticmethod
    def export_option(sentinel: Mapping[str, Any]) -> str | None:
        """How `speechmill export` reads the data set; None if it is not there."""
        target = sentinel["target"]
        return f"--data-set {target}" if Path(target).is_dir() else None

    def check(self, run_dir: Path) -> bool:
        """Check access before anything is computed.

        Returns:
            Whether clips were added to the run's list of removals, because they were removed from the published data
            set.

        Raises:
            SpeechmillError: the target cannot be used; the message says what to do.
        """
        return False

    def publish(
        self,
        batches: Sequence[Batch],
        profile: dict[str, Any],
        summary: dict[str, Any],
        source: dict[str, Any],
        sentinel: Path,
        run_dir: Path,
    ) -> None:
        """Publish the accepted clips and all scores, and write `sentinel` last.

        Args:
            batches: the batches that have a ranking.
            profile, summary, source: contents of ranking/profile.json, report/summary.json and source.json.
            sentinel: path of published/UPLOADED.json in the folder of this job.
            run_dir: the run's folder on the machine of Snakemake, with the list of removals.

        Raises:
            SpeechmillError: publication failed; the message says what to do.
        """
        raise SpeechmillError("publish.kind is none: set it to folder or hub to publish this run")


class Folder(NoTarget):
    """A data set in a folder: `publish.path`, or published/dataset of the run."""

    publishes = True
    copies = 1

    def publish(
        self,
        batches: Sequence[Batch],
        profile: dict[str, Any],
        summary: dict[str, Any],
        source: dict[str, Any],
        sentinel: Path,
        run_dir: Path,
    ) -> None:
        from speechmill.publish.to_folder import publish_folder

        target = Path(self.config["publish"]["path"] or sentinel.with_name("dataset"))
        with run_folder().keeping(sentinel.parent, lambda name: name.startswith(f"{target.name}/")):
            publish_folder(batches, profile, summary, source, self.config, target, sentinel)


class Hub(NoTarget):
    """A data set repository of the Hugging Face Hub."""

    publishes = True
    needs_network = True

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.sends_ahead = shuffled_by(config["publish"]) == "batch"
        self.deletes_audio = not config["keep_enhanced"]

    @staticmethod
    def address(sentinel: Mapping[str, Any]) -> str:
        return f"{sentinel['target']}, tag {sentinel['tag']}"

    @staticmethod
    def export_option(sentinel: Mapping[str, Any]) -> str | None:
        repository, tag = sentinel["repository"], sentinel["tag"]
        fetch = f"hf download --repo-type dataset {repository} --revision {tag} --local-dir DIR"
        return f"{fetch}, then --data-set DIR"

    def check(self, run_dir: Path) -> bool:
        from speechmill.publish.to_hub import check_target

        return check_target(self.config, run_dir)

    def publish(
        self,
        batches: Sequence[Batch],
        profile: dict[str, Any],
        summary: dict[str, Any],
        source: dict[str, Any],
        sentinel: Path,
        run_dir: Path,
    ) -> None:
        from speechmill.publish.to_hub import publish_hub
        from speechmill.ranking.removals import read_removals

        if self.check(run_dir):
            raise SpeechmillError(
                "clips were removed from the published data set after this run was ranked; they are now on the run's "
                "list of removals: run again"
            )
        removed = read_removals(run_dir)
        publish_hub(batches, profile, summary, source, self.config, sentinel.parent, sentinel, removed)
        if self.deletes_audio:  # committed and verified
            for batch in batches:
                batch.audio[0].unlink(missing_ok=True)
        # The next publication has to determine again which audio is missing.
        sentinel.with_name("again.txt").unlink(missing_ok=True)


TARGETS: dict[str, type[NoTarget]] = {"none": NoTarget, "folder": Folder, "hub": Hub}


def target_of(config: dict[str, Any]) -> NoTarget:
    """The target that `publish.kind` names."""
    return TARGETS[config["publish"]["kind"]](config)


def published_by(sentinel: Mapping[str, Any]) -> type[NoTarget]:
    """The target that wrote `sentinel`, the content of published/UPLOADED.json."""
    return TARGETS[sentinel["kind"]]
