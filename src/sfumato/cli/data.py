"""``sfumato data check``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.console import FitOption, JsonOption, SizeOption, Verb, check_output, counting, read_size, show

app = typer.Typer(help="Look at data before training on it.", add_completion=False, pretty_exceptions_enable=False)
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@app.callback()
def root() -> None:
    """Look at data before training on it."""


@app.command("check", cls=Verb)
def check(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="One of {sources}; or a folder (with a sub-folder a class, or with captions: metadata.jsonl, "
            "metadata.csv or a .txt beside each image), an .npz file, or hf:owner/name.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write a preview picture.", show_default=False)
    ] = None,
    size: SizeOption = None,
    fit: FitOption = "crop",
    as_json: JsonOption = False,
) -> None:
    """Count images, sizes, classes and captions, and list what cannot be read and why."""
    pixels = read_size(size)
    if output is not None:
        check_output(output, PICTURES)
    from sfumato import data
    from sfumato.core import pictures

    with counting(f"reading {source}") as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the report says it better
        report = data.check(source, size=pixels, fit=fit, progress=progress)
        if output is not None:
            pictures.save(data.preview(source, size=pixels, fit=fit), output)
    lines = report.lines() + ([f"preview: {output}"] if output else [])
    show(lines, report.to_json() | {"preview": str(output) if output else None}, as_json)
