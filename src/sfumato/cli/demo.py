"""``sfumato demo``: from nothing to pictures in a few minutes."""

from __future__ import annotations

import shlex
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.console import DeviceOption, Interrupted, JsonOption, check_folder, say, show, waiting
from sfumato.cli.train import TrainingDisplay
from sfumato.errors import InputError

EACH = 8  # images of each class
GUIDANCE = 1.5  # a short training leaves labels weak: press them a little


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the model and the pictures.")] = Path("demo"),
    minutes: Annotated[float, typer.Option("--minutes", help="Of training.")] = 2.0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a small generator on clothes (Fashion-MNIST) or, where that is not there, on digits, and draw with it."""
    check_folder(out, "--out")
    began = time.perf_counter()
    from sfumato import data, pictures
    from sfumato.generator import Generator
    from sfumato.training import training_steps

    try:
        images = data.load("fashion-mnist")
    except InputError as error:
        say(f"{error}; the demo takes scikit-learn's digits")
        images = data.load("digits")
    run = out / images.name
    steps = training_steps(images, run, minutes=minutes, device=device)
    try:
        with closing(steps), TrainingDisplay(f"training on {images.name} for {minutes:g} minutes") as display:  # type: ignore[type-var]
            for progress in steps:
                display.update(progress)
    except KeyboardInterrupt:
        raise Interrupted("stopped: the same command goes on from there") from None
    generator = Generator.from_pretrained(run, device)
    classes = generator.classes
    grid, film = out / "samples.png", out / "film.png"
    with waiting("drawing"):
        pixels = generator.sample(
            EACH * len(classes), [name for name in classes for _ in range(EACH)], guidance=GUIDANCE
        )
        pictures.save(pictures.named_rows(pictures.grid(pixels, columns=EACH), classes), grid)
        pictures.save(generator.film(1, guidance=GUIDANCE), film)
    seconds = round(time.perf_counter() - began)
    lines = [
        f"samples: {grid}  (a row for each of {', '.join(classes)})",
        f"film:    {film}  (noise up to an image, and the image down to noise)",
        f"model:   {run}",
        f"next: sfumato sample {shlex.quote(str(run))} --label {shlex.quote(classes[-2])} -n 64 -o more.png",
    ]
    show(
        lines,
        {"samples": str(grid), "film": str(film), "model": str(run), "data": images.name, "seconds": seconds},
        as_json,
    )
