"""What goes to which stream, bars, and help that lists what there is.

Results go to standard output, as text or (``--json``) one JSON object; progress, remarks and errors to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer.core

from sfumato.core.files import finite

if TYPE_CHECKING:
    from rich.console import Console


class Verb(typer.core.TyperCommand):
    """A command whose help names what the registries hold: they need torch, so only ``--help`` looks them up."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for parameter in self.params:
            text = getattr(parameter, "help", None)
            if text and "{" in text:
                parameter.help = text.format_map(_Names())  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


class TrainVerb(Verb):
    """One whose help also explains the keys of ``--set``, each with the line of its docstring."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rich.console import Console
        from rich.panel import Panel
        from rich.table import Table

        from sfumato.config import described_settings

        super().format_help(ctx, formatter)
        for title, settings in described_settings().items():
            table = Table(box=None, show_header=False, padding=(0, 1))
            table.add_column(style="bold cyan", no_wrap=True)
            for name, meaning in settings.items():
                table.add_row(name, meaning)
            panel = Panel(table, title=title, title_align="left", border_style="dim")
            Console(highlight=False, markup=False).print(panel)


_REGISTRIES = {
    "attacks": ("sfumato.attacks", "ATTACKS"),
    "features": ("sfumato.metrics", "FEATURES"),
    "hardenings": ("sfumato.defences.hardening.adversarial_training", "METHODS"),
    "methods": ("sfumato.likelihood", "METHODS"),
    "presets": ("sfumato.config", "PRESETS"),
    "recipes": ("sfumato.recipes", "RECIPES"),
    "samplers": ("sfumato.samplers", "SAMPLERS"),
    "sources": ("sfumato.data", "SOURCES"),
}


class _Names(dict[str, str]):
    """The names that a registry holds, looked up when they are first asked for."""

    def __missing__(self, kind: str) -> str:
        module, name = _REGISTRIES[kind]
        return ", ".join(getattr(importlib.import_module(module), name))


# -- streams ----------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """A remark or an error: one line on standard error."""
    print(f"sfumato: {' '.join(text.split())}", file=sys.stderr, flush=True)


def show(lines: Sequence[str], result: Mapping[str, Any], as_json: bool) -> None:
    """The result on standard output: lines for people, or one JSON object."""
    text = json.dumps(finite(dict(result)), default=str, allow_nan=False) if as_json else "\n".join(lines)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # as in `sfumato ... | head`: whoever read has seen enough, and the work is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stderr() -> Console:
    """Standard error as rich sees it now (made each time, for tests and pipes put others in its place)."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner on a terminal while something runs; nothing elsewhere."""
    console = stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


@contextmanager
def counting(text: str) -> Iterator[Any]:
    """Yields ``progress(done, total)``, which draws a bar with the time left on a terminal, and nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = stderr()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        tasks: list[Any] = []

        def progress(done: int, total: int) -> None:
            if not tasks:  # not before there is something to count: what lies in the cache needs no bar
                tasks.append(bar.add_task(text, total=total))
            bar.update(tasks[0], completed=done, total=total)

        yield progress


class Interrupted(Exception):
    """Ctrl-C, with a sentence about what was kept."""


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C loses nothing in here: the sentence says so."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("stopped: re-run the command to resume") from None
