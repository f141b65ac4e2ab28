"""Commands and code of documents and examples, as they are printed but for their budgets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What makes a budget small. Everything else runs as it is printed.
SMALL = (
    (r"(--recipe \w+) --minutes [\d.]+", r"\1 --steps 4"),
    (r"--minutes [\d.]+", "--steps 2"),
    (r"\bminutes=[\d.]+", "steps=2"),
    (r"\bepochs=[\d.]+", "epochs=1"),
    (r"\bn=[\d_]{4,}", "n=500"),
    (r"\bcount=\d{3,}", "count=4"),
    (r"slice\(20\)", "slice(4)"),
    (r"\[:20\]", "[:4]"),
    (r'kind="plane"\)', 'kind="plane", resolution=7)'),
    (r"\.sample\((\d\d),", r".sample(4,"),
    (r"-n (64|100|500)\b", "-n 4"),
    (r"-n 2000\b", "-n 24"),
    (r"(sfumato classifier train .*)", r"\1 --epochs 1"),
    (r"(sfumato attack .*)", r"\1 -n 4"),
    (r"(sfumato audit .*)", r"\1 -n 2 --screening"),
    (r"(sfumato boundary .*)", r"\1 --kind plane --resolution 7"),
    (r"(sfumato harden .*)", r"\1 --epochs 1 -n 8"),
    (r"(--purify \S+)", r"\1 --purified 1 --purify-sigma 0.1 --purify-steps 1"),
    (r"(sfumato certify .*)", r"\1 --samples 500 --attacked 1"),
)


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return BLOCK.findall(text)


def small(text: str) -> str:
    """Commands or code with small budgets."""
    for pattern, replacement in SMALL:
        text = re.sub(pattern, replacement, text)
    return text


def commands(text: str) -> Iterator[list[str]]:
    """The words of each line, with a small budget."""
    for words in printed(small(text)):
        if words[:2] == ["sfumato", "train"] and not {"--steps", "--minutes", "--images"} & set(words):
            words += ["--steps", "2"]
        if words[:2] == ["sfumato", "evaluate"] and "-n" not in words:
            words += ["-n", "24"]
        yield words


def printed(text: str) -> list[list[str]]:
    """The words of each line as they are; lines of comments alone are none."""
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]
