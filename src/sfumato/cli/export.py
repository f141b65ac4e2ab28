"""``sfumato export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from sfumato.cli.console import show
from sfumato.cli.options import JsonOption, ModelArgument, check_folder, option
from sfumato.core.errors import InputError


def export(
    model: ModelArgument,
    out: Annotated[Path, option("-o", "--out", metavar="FOLDER", help="Output folder, a new one.")],
    json: JsonOption = False,
) -> None:
    """Export a model to share: the weights alone (safetensors), in float16, half as large."""
    check_folder(out)
    from sfumato.core.checkpoint import MODEL
    from sfumato.generator import Generator

    if (out / MODEL).exists():
        raise InputError(f"-o {str(out)!r} holds a model already: give a new folder")
    generator = Generator.from_pretrained(model, "cpu")
    generator.save(out, half=True)
    size = (out / MODEL).stat().st_size
    parameters = sum(p.numel() for p in generator.denoiser.parameters())
    lines = [f"{out}: {parameters / 1e6:.1f} million parameters, {size / 1e6:.1f} MB"]
    show(lines, {"out": str(out), "parameters": parameters, "bytes": size}, json)
