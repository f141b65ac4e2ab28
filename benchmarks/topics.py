"""The benchmarks by name. A topic's module has

__doc__   the question, and how it is measured: the head of its page
NAME      the name of its records, results/NAME.jsonl
COMMANDS  what made the records, after ``python -m benchmarks``
NOTES     what the numbers show, and their caveats
options(parser), run(chosen)   measure, and append a record each
page()    the tables, from the records
claims()  its rows of RESULTS.md
pictures() where it has pictures that are drawn from the records alone
"""

from __future__ import annotations

import importlib
from typing import Any

TOPICS = (
    "generative",
    "ablation",
    "speed",
    "text_to_image",
    "packaged",
    "guidance",
    "likelihood",
    "attacks",
    "hardening",
    "certificates",
    "sequential",
    "purification",
)


def find(name: str) -> Any:
    """The module of a topic."""
    return importlib.import_module(f"benchmarks.{name}")
