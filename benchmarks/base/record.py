"""Measurements as JSON lines, appended one by one: a benchmark that was stopped continues where it stopped."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.base import trial

RESULTS = Path(__file__).parents[1] / "results"
TRANSCRIBED = "transcribed"  # the file of numbers that were noted by hand before every measurement was recorded

Record = dict[str, Any]


def read(topic: str) -> list[Record]:
    """All records of ``results/TOPIC.jsonl``, oldest first."""
    file = RESULTS / f"{topic}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines() if line.strip()] if file.exists() else []


def append(topic: str, record: Record) -> Record:
    """Add one record to ``results/TOPIC.jsonl``, with the command and the machine; returns it."""
    made = {**record, "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]), "machine": trial.machine()}
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{topic}.jsonl").open("a") as file:
        file.write(json.dumps(made) + "\n")
    return made


def once(topic: str, key: Record, again: bool, work: Callable[[], Record]) -> Record | None:
    """Measure and record what ``key`` names, unless it is recorded already; returns the new record."""
    if not again and has(read(topic), **key):
        return None
    made = append(topic, {**key, **work()})
    print(made, flush=True)
    return made


def has(records: Iterable[Record], **wanted: Any) -> bool:
    """Whether a record with these values is there."""
    return any(all(record.get(key) == value for key, value in wanted.items()) for record in records)


def groups(records: Iterable[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    """The records by the values of ``keys``, in the order of their first record."""
    made: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        made.setdefault(tuple(record.get(key) for key in keys), []).append(record)
    return made


def latest(records: Iterable[Record], keys: Sequence[str]) -> list[Record]:
    """For each combination of ``keys`` the record that was written last."""
    return [group[-1] for group in groups(records, *keys).values()]


def transcribed(topic: str, table: str | None = None) -> list[Record]:
    """The cells of a table (without a name: of all) that was noted by hand: row, column, value, and where it is from."""
    return [each for each in read(TRANSCRIBED) if each["topic"] == topic and table in (None, each["table"])]
