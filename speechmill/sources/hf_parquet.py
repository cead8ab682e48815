"""Source kind `hf_parquet`: a data set of the Hugging Face Hub in Parquet files with an Audio column."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml

from speechmill.errors import SourceError
from speechmill.sources import BatchPlan, Clip, Listing, SourceFile
from speechmill.sources.parquet import ParquetRows, split_of
from speechmill.sources.repositories import RepositorySource, matching
from speechmill.utils.schema import nearest

THREADS = 8


class HubParquetSource(RepositorySource, ParquetRows):
    """A clip per row of the Parquet files of one configuration (`source.config`) and of `source.splits`.

    The front matter of the README (`configs`) lists the files of a configuration, as for `datasets.load_dataset`.
    Without it, they are the files in a folder that has the name of the configuration, or all files. The split comes
    from the README, else from the name or folder of a file.
    """

    def list_files(self) -> Listing:
        splits = self._splits()
        wanted = self.section["splits"]
        chosen = {path: split for path, split in splits.items() if wanted is None or split in wanted}
        if not chosen:
            known = sorted({split or "without a name" for split in splits.values()})
            raise SourceError(
                f"{self.where}: no Parquet file of the splits {wanted}; set source.splits to some of: {', '.join(known)}"
            )
        files = self.repository.files(chosen, self.work)
        with ThreadPoolExecutor(THREADS) as pool:
            rows = list(pool.map(self._count, files))
        listed = [replace(file, rows=count, split=chosen[file.path]) for file, count in zip(files, rows, strict=True)]
        left = len(splits) - len(chosen)
        return Listing(listed, [f"{left} files of other splits passed over"] if left else [], self.repository.commit())

    def _count(self, file: SourceFile) -> int:
        from speechmill.storage.hub_client import retry_hub

        assert self.hub
        opened = partial(self.hub.open, file.path)
        return retry_hub(lambda: self.count_rows(file.path, opened), f"{self.where} {file.path}", self.patience_minutes)

    def _splits(self) -> dict[str, str | None]:
        """Parquet file of the configuration -> split."""
        names = [name for name in self.repository.names() if name.endswith(".parquet")]
        if not names:
            raise SourceError(f"{self.where}: no Parquet file found; other layouts need another source.kind")
        config = self.section["config"]
        assert self.hub
        declared = _declared(self.hub.text("README.md") or "")
        if declared:
            name = config or ("default" if "default" in declared else None)
            if name is None and len(declared) == 1:
                name = next(iter(declared))
            if name not in declared:
                hint = nearest(name, declared) if name else f"it has {', '.join(sorted(declared))}"
                raise SourceError(f"{self.where}: set source.config to one of its configurations: {hint}")
            found: dict[str, str | None] = {
                path: split for split, globs in declared[name] for path in matching(names, globs)
            }
            if not found:
                raise SourceError(f"{self.where}: no Parquet file matches its configuration {name}")
            return found
        if config is not None:
            inside = [name for name in names if config in name.split("/")[:-1]]
            if not inside:
                folders = {folder for name in names for folder in name.split("/")[:-1]}
                raise SourceError(f"{self.where}: no configuration {config}: {nearest(config, folders)}")
            names = inside
        return {name: split_of(name) for name in names}

    def plan(self, listing: Listing, batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
        return self.ranges(listing.files, batch_size)

    def clips(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        assert file is not None
        return self.read_rows(plan, file)


def _declared(readme: str) -> dict[str, list[tuple[str, list[str]]]]:
    """Configuration -> list of (split, patterns), from the front matter of a README; empty if it declares no files."""
    found = re.match(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", readme, re.DOTALL)
    try:
        block = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    declared: dict[str, list[tuple[str, list[str]]]] = {}
    configs = block.get("configs") if isinstance(block, dict) else None
    for config in configs if isinstance(configs, list) else []:
        if not isinstance(config, dict) or "data_files" not in config:
            continue
        files = config["data_files"]
        if isinstance(files, dict) and "path" not in files:
            files = [{"split": split, "path": path} for split, path in files.items()]
        parts = []
        for part in files if isinstance(files, list) else [files]:
            part = part if isinstance(part, dict) else {"path": part}
            paths = part.get("path")
            patterns = [_pattern(path) for path in (paths if isinstance(paths, list) else [paths]) if path]
            parts.append((str(part.get("split", "train")), patterns))
        declared[str(config.get("config_name", "default"))] = parts
    return declared


def _pattern(path: object) -> str:
    """The pattern that matches a path of `data_files`: unchanged for a file or pattern, FOLDER/* for a folder."""
    text = str(path)
    return text if "*" in text or text.endswith(".parquet") else f"{text.rstrip('/')}/*"
