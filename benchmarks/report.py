"""RESULTS.md, one page of claims, and ``results/TOPIC.md``, all written from the recorded lines of JSON."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.base import record
from benchmarks.base.table import Claim, grid, sources
from benchmarks.topics import TOPICS, find

FILE = Path(__file__).parent / "RESULTS.md"
WRITTEN = "<!-- written by `python -m benchmarks report`: change the benchmark or its records, not this page -->"
HEAD = """\
# Results

What was claimed, what was measured, against whom. Rows where we are behind or level stay in the table. Each topic's page has
all settings, caveats and how its arms were set up; `results/*.jsonl` has every measurement with its machine. Unless a row says
otherwise: one thread of an AMD EPYC (2 cores, 23.5 GiB, torch 2.13 for CPUs), seed 0. ± is the standard deviation over seeds.

To repeat a row, after `make install` and `pip install diffusers` (the attacks' page names its peers):
`.venv/bin/python -m benchmarks COMMAND`; a command that was stopped continues where it stopped, what is recorded is not measured
again (`--again` does), and `.venv/bin/python -m benchmarks report` writes these pages. `DATA` is a captioned set (see
[texts to images](results/text_to_image.md)), `CIFAR10.npz` a file with images and labels as `sfumato data check` reads it, `RUN` a
trained generator."""


def pages() -> dict[Path, str]:
    """The text of every page by its file."""
    made = {record.RESULTS / f"{name}.md": "\n\n".join(page(find(name))) + "\n" for name in TOPICS}
    return {FILE: "\n\n".join([WRITTEN, HEAD, grid(*claims()), *links()]) + "\n", **made}


def page(topic: Any) -> Iterator[str]:
    """The parts of a topic's page: its question, its commands, its notes, its tables."""
    title, _, about = inspect.cleandoc(topic.__doc__).partition("\n")
    yield WRITTEN
    yield f"# {title.rstrip('.')}"
    if about.strip():
        yield about.strip()
    yield "\n".join(f"    .venv/bin/python -m benchmarks {command}" for command in topic.COMMANDS)
    if topic.NOTES:
        yield topic.NOTES
    yield from topic.page()
    if text := sources(topic.NAME):
        yield text


def claims() -> tuple[list[str], list[list[str]]]:
    """Head and rows of the page of claims."""
    head = ["claim", "number", "interval or spread", "peer", "`python -m benchmarks ...`", "more"]
    found = [(name, claim) for name in TOPICS for claim in find(name).claims()]
    return head, [_row(name, claim) for name, claim in found]


def links() -> Iterator[str]:
    """Where the rest is."""
    yield "All pages: " + ", ".join(f"[{name.replace('_', ' ')}](results/{name}.md)" for name in TOPICS) + "."


def _row(name: str, claim: Claim) -> list[str]:
    return [claim.text, claim.number, claim.interval, claim.peer, f"`{claim.command}`", f"[{name}](results/{name}.md)"]


def write() -> None:
    """Write every page, and the pictures that are drawn from the records."""
    for file, text in pages().items():
        file.write_text(text)
        print(f"wrote {file.relative_to(FILE.parent)}")
    for name in TOPICS:
        if hasattr(find(name), "draw_pictures"):
            find(name).draw_pictures()
