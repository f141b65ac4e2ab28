"""``sfumato data check``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.cli.console import counting, show
from sfumato.cli.options import Fitting, JsonOption, argument, check_file, option, register
from sfumato.cli.pictures import PICTURES

app = typer.Typer(help="Look at data before training on it.", add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def root() -> None:
    """Look at data before training on it."""


def check(
    source: Annotated[
        str,
        argument(
            "SRC",
            "Data set: one of {sources}; a folder (with a sub-folder a class, or with captions: metadata.jsonl, "
            "metadata.csv or a .txt beside each image), an .npz file, or hf:owner/name.",
        ),
    ],
    out: Annotated[Path | None, option("-o", "--out")] = None,
    *,
    fitting: Fitting,
    json: JsonOption = False,
) -> None:
    """Check a data set: count images, sizes, classes and captions, and list what cannot be read and why.

    Args:
        out: FILE: Output: a preview picture. Default: none.
    """
    how: dict[str, Any] = {"size": fitting.pixels, "fit": fitting.fit}
    if out is not None:
        check_file(out, PICTURES)
    from sfumato import data
    from sfumato.core import pictures

    with counting(f"reading {source}") as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the report says it better
        report = data.check(source, **how, progress=progress)
        if out is not None:
            pictures.save(data.preview(source, **how), out)
    lines = report.lines() + ([f"preview: {out}"] if out else [])
    show(lines, report.to_json() | {"preview": str(out) if out else None}, json)


register(app, "check", check)
