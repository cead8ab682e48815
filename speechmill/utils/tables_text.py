"""Tables of numbers as text for a terminal."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from speechmill.utils.text import plain

Justify = Literal["left", "right"]
WIDTH = 110  # columns
LONGEST = 200  # characters of a value


def table_text(title: str, header: Sequence[str], lines: Sequence[Sequence[str]], justify: Justify = "right") -> str:
    """Format a table with a title; the first column is left-aligned. Returns "" without lines."""
    from rich.console import Console
    from rich.table import Table

    if not lines:
        return ""
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, justify=justify if number else "left", overflow="fold")
    for line in lines:
        table.add_row(*(plain(cell, LONGEST) for cell in line))
    out = io.StringIO()
    Console(file=out, width=WIDTH - 2, color_system=None, markup=False, emoji=False, highlight=False).print(table)
    return "\n".join([title, *(f"  {line}".rstrip() for line in out.getvalue().splitlines())])


def signed(one: Mapping[str, Any], form: str = "") -> list[str]:
    return [f"{one['before']:,{form}}", f"{one['after']:,{form}}", f"{one['difference']:+,{form}}"]


def number_text(value: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
