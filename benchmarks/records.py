"""Results as JSON lines: appended one by one, so that a measurement that is stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Record = dict[str, Any]


def read(name: str) -> list[Record]:
    """All records of ``results/NAME.jsonl``, oldest first."""
    file = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines() if line.strip()] if file.exists() else []


def append(name: str, record: Record) -> None:
    """Add one record to ``results/NAME.jsonl``."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def latest(records: Sequence[Record], keys: Sequence[str]) -> list[Record]:
    """For each combination of ``keys`` the record that was written last."""
    return list({tuple(json.dumps(record.get(key)) for key in keys): record for record in records}.values())


def has(records: Sequence[Record], **wanted: Any) -> bool:
    """Whether a record with these values is there."""
    return any(all(record.get(key) == value for key, value in wanted.items()) for record in records)
