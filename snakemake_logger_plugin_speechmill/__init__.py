"""Snakemake's logger plugin `speechmill`: shows a run in Panoptes, where one is named.

Snakemake imports this in every process that it starts: what it needs is imported when a run begins.
"""

import os
from dataclasses import dataclass, field
from logging import LogRecord
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase

ADDRESS = "SPEECHMILL_PANOPTES"
HEADER = "SPEECHMILL_PANOPTES_HEADER"


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    """`--logger-speechmill-address`."""

    address: str = field(
        default="",
        metadata={"help": f"Panoptes, such as http://127.0.0.1:5000; or in the environment, as {ADDRESS}."},
    )


class LogHandler(LogHandlerBase):
    """Does nothing without an address, in a dry run, and before the first job of a run."""

    def __post_init__(self) -> None:
        assert isinstance(self.settings, LogHandlerSettings)
        self.address = self.settings.address or os.environ.get(ADDRESS, "")
        self.planned: LogRecord | None = None  # comes before the run has begun
        self.hook: Any = None  # speechmill.monitor.panoptes.Panoptes, once a run has begun

    def emit(self, record: LogRecord) -> None:
        if not self.address:
            return
        try:
            from speechmill.runlog.snakemake_events import event_name
            from speechmill.runs.session import current_start

            kind = event_name(record)
            if self.hook:
                self.hook.tell(record)
            elif kind == "run_info":
                self.planned = record
            elif kind == "job_info" and (start := current_start()):  # a run without any job is not shown
                self._begin(start, [self.planned, record] if self.planned else [record])
        except Exception:
            self.handleError(record)

    def _begin(self, start: Any, records: list[LogRecord]) -> None:
        from snakemake.logging import logger

        from speechmill.errors import ConfigError
        from speechmill.monitor.panoptes import Panoptes, find_server

        try:
            self.hook = Panoptes(find_server(self.address, os.environ.get(HEADER, "")), start, logger)
        except ConfigError as error:
            self.address = ""
            logger.warning(str(error))
            return
        for record in records:
            self.hook.tell(record)

    def close(self) -> None:
        if self.hook:
            hook, self.hook, self.address = self.hook, None, ""
            hook.close()
        super().close()

    @property
    def writes_to_stream(self) -> bool:
        return False

    @property
    def writes_to_file(self) -> bool:
        return False

    @property
    def has_filter(self) -> bool:
        """None is needed: what --quiet hides is shown in Panoptes all the same."""
        return True

    @property
    def has_formatter(self) -> bool:
        return True

    @property
    def needs_rulegraph(self) -> bool:
        return False
