"""``sfumato sample``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.console import (
    DeviceOption,
    GuidanceOption,
    JsonOption,
    SamplerOption,
    SeedOption,
    StepsOption,
    check_folder,
    check_output,
    counting,
    show,
    waiting,
)
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

    from sfumato.generator import Generator
    from sfumato.guidance import Guidance

GRIDS = (".png", ".jpg", ".jpeg", ".webp")
MOST_COLUMNS = 16  # of a grid with a column for each label


def sample(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A run folder, a model.safetensors, or hf:owner/name. Default: the packaged model, which draws emoji.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", help="A picture for a grid, a name that ends in / for single files, or an .npz file."
        ),
    ] = "samples.png",
    count: Annotated[
        int | None, typer.Option("-n", "--count", help="How many. Default: 16; of a film, 1.", show_default=False)
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", help="A class by name or number; several take turns. Default: all.", show_default=False
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            help="What to draw, in words; -n images of each of several. Default: anything.",
            show_default=False,
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init", metavar="IMAGE", help="An image to start from; a small one is enlarged.", show_default=False
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            "--strength",
            help="How much of it is drawn anew, 0 to 1. Default: 0.6, with a mask 1. With --toward: how far. Default: 0.4.",
            show_default=False,
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            "--mask",
            metavar="IMAGE",
            help="Where it is white --init is painted anew, the rest kept.",
            show_default=False,
        ),
    ] = None,
    resample: Annotated[
        int | None,
        typer.Option(
            "--resample",
            help="With a mask: how often to paint again, for a better fit. Default: 2.",
            show_default=False,
        ),
    ] = None,
    variations: Annotated[
        list[str] | None,
        typer.Option(
            "--variations",
            metavar="IMAGE",
            help="An image to vary, or two to go between; with a model of --recipe dalle2.",
            show_default=False,
        ),
    ] = None,
    toward: Annotated[
        str | None,
        typer.Option("--toward", metavar="TEXT", help="Move the image of --variations to this.", show_default=False),
    ] = None,
    away: Annotated[
        str | None,
        typer.Option("--away", metavar="TEXT", help="With --toward: what the image shows now.", show_default=False),
    ] = None,
    film: Annotated[
        bool, typer.Option("--film", help="Show both directions: images down to noise, and noise up to images.")
    ] = False,
    sampler: SamplerOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    interval: Annotated[
        str | None,
        typer.Option(
            "--interval", metavar="LOW,HIGH", help="Noise levels between which guidance acts.", show_default=False
        ),
    ] = None,
    rescale: Annotated[
        float, typer.Option("--rescale", help="Share, 0 to 1, by which guidance keeps the contrast as it was.")
    ] = 0.0,
    threshold: Annotated[
        float, typer.Option("--threshold", help="Percentile of dynamic thresholding, such as 0.995; 0 is off.")
    ] = 0.0,
    weak: Annotated[
        str | None,
        typer.Option("--weak", metavar="MODEL", help="A weaker model for autoguidance.", show_default=False),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Draw images from a trained model, or from the packaged one."""
    folder = output.endswith("/") or Path(output).is_dir()
    target = Path(output)
    count = count if count is not None else 1 if film else 16
    if film and folder:
        raise InputError(f"-o {output!r} is a folder, but a film is one picture: give a name that ends in .png")
    if folder:
        check_folder(target)
    else:
        check_output(target, GRIDS if film else (*GRIDS, ".npz"))
    if count < 1:
        raise InputError(f"-n {count} draws nothing: give 1 or more")
    for option, value in (("--strength", strength), ("--mask", mask), ("--resample", resample)):
        if value is not None and init is None and not (option == "--strength" and toward is not None):
            also = ", or with --variations and --toward" if option == "--strength" else ""
            raise InputError(f"{option} is for changing an image: give that image with --init{also}")
    others = {"--prompt": prompt, "--label": label, "--init": init, "--film": film, "--weak": weak}
    _check_variations(variations or [], toward, away, [option for option, value in others.items() if value])
    if film and init is not None:
        raise InputError("--film shows sampling from pure noise: leave --init out, or --film")
    from sfumato import editing
    from sfumato.core import pictures
    from sfumato.film import film as draw_film
    from sfumato.generator import Generator, packaged
    from sfumato.recipes import load, varied

    generator = load(model or packaged(), device)
    pressed = _guidance(generator, guidance, _interval(interval), rescale, threshold)
    how: dict[str, Any] = {"sampler": sampler, "steps": steps, "guidance": pressed, "seed": seed}
    if variations:
        with counting(f"drawing {count} images") as progress:
            moved: dict[str, Any] = {"toward": toward, "away": away, "strength": strength}
            pixels, done = varied(generator, variations, count, **moved, progress=progress, **how)
        if folder:
            _write_folder(target, pictures.to_bytes(pixels), [])
        elif target.suffix.lower() == ".npz":
            _write_npz(target, pictures.to_bytes(pixels), [], (), None)
        else:
            pictures.save(pictures.grid(pixels, count if count <= MOST_COLUMNS else None), target)
        result = {"output": output, "count": count, "variations": variations, **moved, **how, "guidance": vars(pressed)}
        show([f"{count} {done}: {output}"], result, as_json)
        return
    if weak is not None:
        how["weak"] = Generator.from_pretrained(weak, device)
    labels = None if not label else [label[i % len(label)] for i in range(count)]
    prompts = None
    if prompt:
        prompts = [text for text in prompt for _ in range(count)]
        count = len(prompts)
    if init is not None and not isinstance(generator, Generator):
        raise InputError("--init needs a model that is one ladder, and this is one of a recipe: give another model")
    edit = None if init is None else editing.plan(generator.ladder, init, strength, mask)
    if film:
        with waiting("drawing the film"):
            pictures.save(draw_film(generator, count, labels, prompt=prompts, **how), target)
    else:
        if edit is not None:
            how["resample"] = resample
        with counting(f"drawing {count} images") as progress:
            told: dict[str, Any] = {"label": labels, "prompt": prompts, "progress": progress, **how}
            pixels = generator.sample(count, **told) if edit is None else editing.edit(generator, edit, count, **told)
        classes = generator.classes if labels or edit is None else ()  # an image is changed without a label, too
        names = prompts or [classes[i] for i in generator.labels(count, labels) if classes]
        if folder:
            _write_folder(target, pictures.to_bytes(pixels), names)
        elif target.suffix.lower() == ".npz":
            drawn = generator.labels(count, labels).tolist()
            _write_npz(target, pictures.to_bytes(pixels), drawn, classes, prompts)
        else:
            pictures.save(_sheet(pixels, prompt, label, classes), target)
    what = "film" if film else "images"
    result = {"output": output, "count": count, "labels": label, "prompts": prompt, "film": film, **how, "weak": weak}
    result["guidance"] = vars(pressed)
    if edit is not None:
        result |= {"init": init, "mask": mask, "edit": edit.kind}
        result["strength"] = None if edit.kind == editing.SUPER_RESOLUTION else edit.strength
    done = "" if edit is None else f", {edit}"
    show([f"{count} {what if count > 1 or film else 'image'}{done}: {output}"], result, as_json)


def _check_variations(images: Sequence[str], toward: str | None, away: str | None, others: Sequence[str]) -> None:
    """Refuse options that do not go together, before the model is loaded."""
    for option, value, needs in (("--toward", toward, "--variations"), ("--away", away, "--toward")):
        if value is not None and (not images if option == "--toward" else toward is None):
            raise InputError(f"{option} says how an image is to change: give {needs}, too")
    if not images:
        return
    if len(images) > (1 if toward is not None else 2):
        most = "one image" if toward is not None else "one image or two"
        raise InputError(f"--variations was given {len(images)} times: give {most}")
    if others:
        hint = "say with --toward what it is to become" if "--prompt" in others else "leave one of them out"
        raise InputError(f"--variations starts from an image, and {others[0]} does not go with it: {hint}")


def _guidance(
    generator: Generator, scale: float | None, interval: tuple[float, float], rescale: float, threshold: float
) -> Guidance:
    """What was asked for, over what suits the model."""
    from dataclasses import replace

    asked: dict[str, Any] = {"interval": interval, "rescale": rescale}
    if scale is not None:
        asked["scale"] = scale
    if threshold:
        asked["threshold"] = threshold
    return replace(generator.default_guidance, **asked)


def _sheet(pixels: Tensor, prompt: Sequence[str] | None, label: Sequence[str] | None, classes: Sequence[str]) -> Image:
    """One picture of all images: a row for each of several prompts, or a column for each label."""
    from sfumato.core import pictures

    count = len(pixels)
    if prompt and len(prompt) > 1:
        return pictures.named_rows(pictures.grid(pixels, columns=count // len(prompt)), prompt)
    return pictures.grid(pixels, _columns(count, len(label) if label else len(classes)))


def _columns(count: int, turns: int) -> int | None:
    """Columns of a nearly square grid, such that each holds one of the ``turns`` labels; None where that cannot be."""
    if not 1 < turns <= min(count, MOST_COLUMNS):
        return None
    return turns * max(1, round(count**0.5 / turns))


def _interval(text: str | None) -> tuple[float, float]:
    """``0.1,2`` as two numbers; everything when left out."""
    if text is None:
        return 0.0, float("inf")
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--interval {text!r} cannot be read: give two noise levels such as 0.1,2") from None
    return low, high


def _write_folder(folder: Path, images: np.ndarray, names: Sequence[str]) -> None:
    """One file an image, ``00007-sneaker.png``; images (N, H, W, C) uint8, their labels or prompts if there are any."""
    from PIL import Image

    from sfumato.core.pictures import save

    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        name = "-" + "".join(c if c.isalnum() else "-" for c in names[i])[:60] if names else ""
        save(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), folder / f"{i:05d}{name}.png")


def _write_npz(
    path: Path, images: np.ndarray, labels: Sequence[int], classes: Sequence[str], prompts: Sequence[str] | None
) -> None:
    """``images`` (N, H, W, C) uint8 with ``labels`` (N,) int64 and ``classes``, or ``captions``: what ``--data`` reads."""
    import numpy as np

    from sfumato.core.files import atomic

    arrays: dict[str, Any] = {"images": images}
    if classes:
        arrays |= {"labels": np.array(labels, np.int64), "classes": np.array(classes)}
    if prompts:
        arrays["captions"] = np.array(prompts)
    with atomic(path) as beside:
        np.savez_compressed(beside, **arrays)
