"""``sfumato certify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.attack import ClassifierArgument
from sfumato.cli.console import (
    DataOption,
    DeviceOption,
    FitOption,
    Interrupted,
    JsonOption,
    SeedOption,
    SizeOption,
    check_folder,
    counting,
    load_images,
    read_size,
    say,
    show,
)
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping


def certify(
    classifier: ClassifierArgument,
    data: DataOption,
    sigma: Annotated[
        float, typer.Option("--sigma", help="Standard deviation of the noise, of pixels in [0, 1]: 0.12 to 1.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the curve, the table and each image's result; half done, it goes on.")],
    generator: Annotated[
        str | None,
        typer.Option(
            "--generator",
            metavar="MODEL",
            help="Denoise in front: a run folder, a model.safetensors, or hf:owner/name. Without, CLF sees the noise.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", help="How many images to draw and certify.")] = 500,
    radii: Annotated[
        str | None,
        typer.Option(
            "--radii", help="L2 distances to decide about: 0.25,0.5. Default: sigma/2, sigma, 3/2 and 2 sigma.",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="sequential (stops when all radii are decided) or cohen (all --samples).")
    ] = "sequential",
    alpha: Annotated[
        float, typer.Option("--alpha", help="Probability that an image's certificate is wrong, at most.")
    ] = 0.001,
    samples: Annotated[int, typer.Option("--samples", help="Noisy copies of an image, at most.")] = 100_000,
    selection: Annotated[int, typer.Option("--n0", help="Noisy copies that choose the class to certify.")] = 100,
    attacked: Annotated[
        int, typer.Option("--attacked", help="How many of the images to attack as well; 0 for none.")
    ] = 50,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Noisy copies at once. Default: by the device.", show_default=False)
    ] = None,
    fit: FitOption = "crop",
    size: SizeOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Prove that a classifier, smoothed with noise, does not change its mind nearby: the certified-accuracy curve."""
    pixels = read_size(size)
    check_folder(out)
    distances = None if radii is None else read_radii(radii)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: give 1 or more")
    from sfumato.classifiers import find_classifier
    from sfumato.defences import CertificationRequest, SmoothingSettings, certify_data
    from sfumato.defences.smoothing.certified_accuracy import PICTURE
    from sfumato.generator import Generator

    settings = SmoothingSettings(sigma, selection, samples, alpha, mode, distances, seed, batch_size)
    request = CertificationRequest(settings, count, attacked, (classifier, generator or ""))
    found = find_classifier(classifier, device)
    model = None if generator is None else Generator.from_pretrained(generator, device)
    wanted = pixels or found.size or (None if model is None else model.ladder.size)
    images = load_images(data, wanted, fit, "test")
    try:
        with counting(f"certifying {classifier}") as progress:
            made = certify_data(found, images, request, generator=model, out=out, progress=progress, remark=say)
    except KeyboardInterrupt:
        raise Interrupted("stopped: the same command goes on from there") from None
    made.save(out)
    show([*_lines(made.report), "", f"picture: {out / PICTURE}"], {**made.report, "out": str(out)}, as_json)


def read_radii(text: str) -> tuple[float, ...]:
    """``0.25,0.5`` as numbers."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--radii {text!r} cannot be read: give L2 distances such as 0.25,0.5,0.75,1") from None
    if not all(0 < radius < float("inf") for radius in found):
        raise InputError(f"--radii {text!r}: give L2 distances over 0")
    return found


def _lines(report: Mapping[str, Any]) -> list[str]:
    lines = [report["verdict"], "", f"  {'L2 radius':>9}  {'Linf':>7}  {'certified':<26}  attacked: stand / certified"]
    for row in report["table"]:
        here, empirical, same = row["certified"], row["empirical"], row["certified_attacked"]
        share = f"{here['accuracy']:>6.1%}  ({here['low']:.1%} to {here['high']:.1%})"
        attack = f"{empirical['accuracy']:.1%} / {same['accuracy']:.1%} of {same['count']}" if empirical else "-"
        undecided = f"   {row['undecided']} undecided" if row["undecided"] else ""
        lines.append(f"  {row['radius']:>9.3g}  {row['linf']:>7.4f}  {share:<26}  {attack}{undecided}")
    draws, attack = report["draws"], report["attack"]
    lines += ["", f"The L1 certificate is that of L2. {report['abstained']} of {report['data']['images']} images abstain; "
              f"{draws['median']:,.0f} noisy copies an image (median; 95%: {draws['p95']:,.0f})."]  # fmt: skip
    if attack and attack["contradictions"]:
        lines.append(f"{attack['contradictions']} attacked images were fooled within their certified radius: more than "
                     "a share of alpha means that the classifier is not deterministic, or a bug")  # fmt: skip
    return lines
