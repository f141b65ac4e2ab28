"""Records as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.base.record import Record, groups, transcribed


class Claim(NamedTuple):
    """One row of RESULTS.md."""

    text: str
    number: str
    interval: str  # or spread; what it is stands with it
    peer: str
    command: str  # after ``python -m benchmarks``


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def rows(head: str, row: str, items: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table of items: ``row`` is a format of an item's values; its cells are parted by ``|``, as the head's."""
    return grid(_cells(head), [_cells(row.format(**item)) for item in items])


def mean(records: Sequence[Mapping[str, Any]], key: str) -> float:
    """The mean of a number over records."""
    return statistics.fmean(record[key] for record in records)


def spread(values: Sequence[float], digits: int = 2, unit: str = "") -> str:
    """``3.71 ± 0.12``: mean and standard deviation over seeds; the value alone where there is one."""
    shown = f"{statistics.fmean(values):.{digits}f}{unit}"
    return shown if len(values) < 2 else f"{shown} ± {statistics.stdev(values):.{digits}f}"


def between(share: Mapping[str, Any], digits: int = 1) -> str:
    """The 95% interval of a share."""
    return f"{share['low']:.{digits}%} to {share['high']:.{digits}%}"


def percent(share: Mapping[str, Any], digits: int = 1) -> str:
    """``34.0% (19.1% to 53.2%)``: a share and its 95% interval."""
    return f"{share['accuracy']:.{digits}%} ({between(share, digits)})"


def pivot(topic: str, name: str, corner: str = "") -> str:
    """A transcribed table: its rows by its columns; several values of one cell stand beside each other."""
    cells = transcribed(topic, name)
    columns = list(dict.fromkeys(cell["column"] for cell in cells))
    rows = []
    for (row,), mine in groups(cells, "row").items():
        shown = groups(mine, "column")
        rows.append([row, *(" and ".join(map(_shown, shown.get((column,), []))) for column in columns)])
    return grid([corner, *columns], rows)


def sources(topic: str) -> str:
    """Where the transcribed tables of a topic come from; "" where there are none."""
    first = [cells[0] for cells in groups(transcribed(topic), "table").values()]
    lines = [f"* {each['table']}: {each['transcribed']}; {each['machine']}; {each['command']}" for each in first]
    return "\n".join(["Tables that were noted by hand when they were measured:", "", *lines]) if lines else ""


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


def _shown(cell: Record) -> str:
    value = cell["value"]
    return value if isinstance(value, str) else f"{value:,.{cell.get('digits', 0)}f}{cell.get('unit', '')}"
