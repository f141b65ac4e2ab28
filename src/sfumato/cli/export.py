"""``sfumato export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.console import JsonOption, ModelArgument, check_folder, show


def export(
    model: ModelArgument,
    output: Annotated[str, typer.Option("-o", "--output", help="A new folder.")],
    as_json: JsonOption = False,
) -> None:
    """Write a copy of a model to share: the weights alone, in 16 bits, half as large."""
    target = Path(output)
    check_folder(target)
    from sfumato.core.checkpoint import MODEL
    from sfumato.core.errors import InputError
    from sfumato.generator import Generator

    if (target / MODEL).exists():
        raise InputError(f"-o {output!r} holds a model already: give a new folder")
    generator = Generator.from_pretrained(model, "cpu")
    generator.save(target, half=True)
    size = (target / MODEL).stat().st_size
    parameters = sum(p.numel() for p in generator.denoiser.parameters())
    lines = [f"{output}: {parameters / 1e6:.1f} million parameters, {size / 1e6:.1f} MB"]
    show(lines, {"output": output, "parameters": parameters, "bytes": size}, as_json)
