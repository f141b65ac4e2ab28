"""``sfumato purify``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from sfumato.cli.console import counting, show
from sfumato.cli.options import Common, ModelArgument, OutFolder, argument, check_folder
from sfumato.cli.pictures import picture_files, read_picture, save_array
from sfumato.core.errors import InputError


def purify(
    model: ModelArgument,
    images: Annotated[list[Path], argument("IMAGES", "Image files to purify, or folders of them.")],
    out: OutFolder,
    sigma: float | None = None,
    steps: int | None = None,
    sampler: str = "euler",
    *,
    common: Common,
) -> None:
    """Diffusion purification: noise images and denoise them again. No guarantee: measure it with audit --purify.

    Args:
        sigma: Noise level: standard deviation, of pixels in [0, 1]. Default: 0.3.
        steps: Denoising steps. Default: 2, or one a stage.
        sampler: Sampler: {samplers}; mean does not work.
    """
    check_folder(out)
    images = picture_files(images)
    files = targets(images, out)
    import torch

    from sfumato.core.files import make_folder
    from sfumato.core.pictures import to_bytes
    from sfumato.defences import purify as run
    from sfumato.defences.purification.purifier import SIGMA, Purifier
    from sfumato.generator import Generator

    generator = Generator.from_pretrained(model, common.device)
    purifier = Purifier.of(generator, sigma=SIGMA if sigma is None else sigma, steps=steps, sampler=sampler)
    x = torch.stack([read_picture(path, generator.ladder) for path in images])  # all, before anything is written
    began = time.perf_counter()
    with counting("purifying") as progress:
        clean = run(purifier, x, seed=common.seed, progress=progress)
    seconds = (time.perf_counter() - began) / len(x)
    make_folder(out)
    for file, pixels in zip(files, clean, strict=True):
        save_array(to_bytes(pixels[None])[0], file)
    rows = [{"image": str(path), "out": str(file)} for path, file in zip(images, files, strict=True)]
    how: dict[str, Any] = {"sigma": purifier.sigma, "steps": purifier.steps, "sampler": sampler, "seed": common.seed}
    result = {"model": model, **how, "images": rows, "seconds_an_image": seconds, "out": str(out)}
    count = f"{len(rows)} image{'s' if len(rows) > 1 else ''}"
    show([f"{count} purified ({purifier}, {seconds:.2g} s an image): {out}"], result, common.json)


def targets(images: list[Path], out: Path) -> list[Path]:
    """A file for each image: its stem, numbered where another has the same.

    Raises:
        InputError: one of them is one of the images themselves.
    """
    taken: set[str] = set()
    found = []
    for path in images:
        stem, number = path.stem, 1
        while stem.lower() in taken:  # some disks do not tell A from a
            number += 1
            stem = f"{path.stem}-{number}"
        taken.add(stem.lower())
        found.append(out / f"{stem}.png")
    originals = {path.resolve(): path for path in images}
    for file in found:
        if file.resolve() in originals:
            raise InputError(
                f"-o {str(out)!r}: {str(originals[file.resolve()])!r} would be written over: give another folder"
            )
    return found
