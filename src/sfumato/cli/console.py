"""What the verbs share: options, help that lists what there is, and what goes to which stream.

Results go to standard output, as text or (``--json``) one JSON object; progress, remarks and errors to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from sfumato.core.errors import InputError
from sfumato.core.files import finite

if TYPE_CHECKING:
    from rich.console import Console

    from sfumato.data import ImageSet

DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Same seed, same device: same result.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON object on standard output, all else on standard error.")
]
SizeOption = Annotated[
    str | None, typer.Option("--size", help="Side in pixels, or WIDTHxHEIGHT; even. Default: what suits the data.")
]
FitOption = Annotated[str, typer.Option("--fit", help="How images of other shapes get there: crop or pad.")]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="One of {sources}; or a folder (with a sub-folder a class, or with captions), an .npz file, or hf:owner/name.",
    ),
]
ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A run folder, a model.safetensors, or hf:owner/name.", show_default=False),
]
SamplerOption = Annotated[
    str | None, typer.Option("--sampler", help="One of {samplers}. Default: dpmpp-2m.", show_default=False)
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", help="Steps over all stages: more are slower and better.", show_default=False)
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        help="How strongly label or prompt is pressed; 1 is off. Default: 1 for labels, 3 for prompts.",
        show_default=False,
    ),
]


class Verb(typer.core.TyperCommand):
    """A command whose help names what the registries hold: they need torch, so only ``--help`` looks them up."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for parameter in self.params:
            text = getattr(parameter, "help", None)
            if text and "{" in text:
                parameter.help = text.format_map(_Names())  # type: ignore[attr-defined]
        if self.epilog:
            self.epilog = self.epilog.format_map(_Names())
        super().format_help(ctx, formatter)


class _Names(dict[str, str]):
    """Names of parts by kind, each looked up when it is first asked for."""

    def __missing__(self, kind: str) -> str:
        names: Iterable[str]
        if kind == "samplers":
            from sfumato.samplers import SAMPLERS as names
        elif kind == "networks":
            from sfumato.denoisers import NETWORKS as names
        elif kind == "presets":
            from sfumato.training import PRESETS as names
        elif kind == "recipes":
            from sfumato.recipes import RECIPES as names
        elif kind == "sources":
            from sfumato.data import SOURCES as names
        elif kind == "features":
            from sfumato.metrics import FEATURES as names
        elif kind == "settings":
            from dataclasses import fields

            from sfumato.config import Config

            names = [f.name for f in fields(Config) if f.name != "options"]
        else:
            raise KeyError(kind)
        return ", ".join(names)


# -- streams ----------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """A remark or an error: one line on standard error."""
    print(f"sfumato: {' '.join(text.split())}", file=sys.stderr, flush=True)


def show(lines: Sequence[str], result: Mapping[str, Any], as_json: bool) -> None:
    """The result on standard output: lines for people, or one JSON object."""
    try:
        print(
            json.dumps(finite(dict(result)), default=str, allow_nan=False) if as_json else "\n".join(lines), flush=True
        )
    except BrokenPipeError:  # as in `sfumato ... | head`: whoever read has seen enough, and the work is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stderr() -> Console:
    """Standard error as rich sees it now (made anew, for tests and pipes put others in its place)."""
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


# -- options ----------------------------------------------------------------------------------------------------------


def read_size(text: str | None) -> int | tuple[int, int] | None:
    """``64`` or ``WIDTHxHEIGHT`` as a side or (H, W)."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(
            f"--size {text!r} cannot be read: give a side in pixels such as 64, or WIDTHxHEIGHT such as 64x48"
        )
    return int(parts[0]) if len(parts) == 1 else (int(parts[1]), int(parts[0]))


def read_settings(pairs: Sequence[str]) -> dict[str, str]:
    """``key=value`` texts as a dictionary."""
    settings: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {pair!r} is not of the form key=value: give for example --set batch=64")
        if key.strip() in settings:
            raise InputError(f"--set {key.strip()} is given twice: give it once")
        settings[key.strip()] = value.strip()
    return settings


def load_images(source: str, size: int | tuple[int, int] | None, fit: str, split: str = "train") -> ImageSet:
    """The images, with a bar on a terminal while they are decoded."""
    from sfumato.data import load

    with counting(f"reading {source}") as progress:
        return load(source, split=split, size=size, fit=fit, progress=progress)


def check_output(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse what cannot be written before any work is done for it."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"-o {str(path)!r} must end in {' or '.join(suffixes)}: give such a name")
    if path.is_dir():
        raise InputError(f"-o {str(path)!r} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise InputError(f"-o {str(path)!r}: there is no folder {str(path.parent)!r}: make it, or write elsewhere")


def check_folder(path: Path, option: str = "-o") -> None:
    """Refuse a folder that is, or lies below, a file."""
    nearest = next(p for p in (path, *path.parents) if p.exists())
    if not nearest.is_dir():
        raise InputError(f"{option} {str(path)!r}: {str(nearest)!r} is a file, not a folder: give another name")
