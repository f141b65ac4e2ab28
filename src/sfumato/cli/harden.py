"""``sfumato harden``."""

from __future__ import annotations

import shlex
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.cli.attack import ClassifierArgument, read_eps
from sfumato.cli.classifier import ClassifierDisplay, EpochsOption, MinutesOption
from sfumato.cli.console import (
    DataOption,
    DeviceOption,
    FitOption,
    Interrupted,
    JsonOption,
    SeedOption,
    check_folder,
    counting,
    load_images,
    say,
    show,
    waiting,
)
from sfumato.core.errors import InputError

IMAGES = 500


def harden(
    classifier: ClassifierArgument,
    data: DataOption,
    out: Annotated[
        str, typer.Option("--out", help="The hardened classifier's folder; if it holds this hardening already, it goes on.")
    ],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="trades, pgd (adversarial training), fast (the same with one step, and a guard); for certify, with --eps its "
            "--sigma: noise, or denoised (by --generator).",
        ),
    ] = "trades",
    norm: Annotated[str, typer.Option("--norm", help="Linf or L2.")] = "Linf",
    eps: Annotated[
        str, typer.Option("--eps", help="Size of the perturbations to stand, of pixels in [0, 1]: 8/255 or 0.1.")
    ] = "8/255",
    generator: Annotated[
        str | None,
        typer.Option(
            "--generator",
            metavar="MODEL",
            help="Mix its images in, those that CLF takes for their label; method denoised: its denoiser. A run folder, a "
            "model.safetensors, or hf:owner/name.",
            show_default=False,
        ),
    ] = None,
    share: Annotated[float, typer.Option("--share", help="Of each batch, how much is generated.")] = 0.3,
    minutes: MinutesOption = None,
    epochs: EpochsOption = None,
    fit: FitOption = "crop",
    count: Annotated[int, typer.Option("-n", "--count", help="How many test images to measure on, before and after.")] = IMAGES,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Train a classifier on, so that small perturbations no longer fool it. The same command again goes on where it stopped."""
    radius = read_eps(eps)
    if count < 1:
        raise InputError(f"-n {count}: give 1 or more images to measure on")
    check_folder(Path(out), "--out")
    from sfumato.classifiers import find_classifier, load_classifier, read_description
    from sfumato.classifiers.training import Budget
    from sfumato.defences.hardening.adversarial_training import METHODS, Threat
    from sfumato.defences.hardening.harden import check_trainable, hardening_steps
    from sfumato.defences.hardening.smoothness import PICTURE, picture, report, save_report, smoothness, table
    from sfumato.generator import Generator

    METHODS.find(method)  # all of it before the images are decoded: that may take its time
    Threat(norm, radius)
    budget = Budget.of(minutes, epochs)
    before = find_classifier(classifier, device)
    check_trainable(before)
    model = None if generator is None else Generator.from_pretrained(generator, device)
    load_images(data, before.size, fit)  # into the cache, with a bar
    last = None
    try:
        with counting(f"drawing images for {out}") as drawing:
            run = hardening_steps(
                before, data, out, method=method, norm=norm, eps=radius, generator=model, share=share, minutes=minutes,
                epochs=epochs, fit=fit, seed=seed, drawing=drawing,
            )  # fmt: skip
        with closing(run), HardeningDisplay(f"hardening {out} for {budget}") as display:  # type: ignore[type-var]
            for last in run:
                display.update(last)  # type: ignore[arg-type]  (it has all that the bar asks for)
                if last.remark:
                    say(last.remark)
    except KeyboardInterrupt:
        raise Interrupted("stopped: the same command goes on from there") from None
    after = load_classifier(out, device)
    x, y = _tested(before, data, fit, count)
    with counting("measuring") as progress:
        first = smoothness(before, x, y, norm=norm, eps=radius, seed=seed, progress=progress)
        second = smoothness(after, x, y, norm=norm, eps=radius, seed=seed, progress=progress)
    names = (_name(classifier), _name(out))
    with waiting("drawing the boundaries"):
        views = picture(before, after, x, y, norm=norm, eps=radius, names=names, seed=seed)
    described = read_description(out)
    own = ["--data", data, *(["--fit", fit] if fit != "crop" else [])]
    follow = _follow(classifier, out, own, ["--norm", norm, "--eps", eps], described["training"], generator)
    found = report(
        first, second, classifier=classifier, hardened=out, data=data, norm=norm, eps=radius, images=len(x), seed=seed,
        training=described["training"], test=described["test"],
        boundary=views if isinstance(views, str) else [f"{panel.title}: {panel.caption}" for panel in views.panels],
    )  # fmt: skip
    save_report(Path(out), found, views)
    lines = [_line(out, described["training"], last is None, str(budget)), *_mixed(described["training"]), ""]
    lines += table(first, second, norm, radius)
    if isinstance(views, str):
        say(f"there is no picture of the boundaries: {views}")
    else:
        lines += ["", f"picture: {Path(out) / PICTURE}"]
    lines += [f"next: {follow[0]}", f"then: {follow[1]}"]
    show(lines, {**found, "done_before": last is None, "next": follow}, as_json)


def _tested(classifier: Any, data: str, fit: str, count: int) -> Any:
    """Test images at random, always the same, and their labels."""
    import numpy as np

    from sfumato.classifiers import match_labels

    images = load_images(data, classifier.size, fit, "test")
    rows = np.sort(np.random.RandomState(0).permutation(len(images))[:count])
    return images.pixels(rows), match_labels(classifier, images)[rows]


def _follow(
    classifier: str, out: str, data: list[str], threat: list[str], training: dict[str, Any], generator: str | None
) -> list[str]:
    """The commands that tell what hardening was worth: two audits, or two certifications of what was trained with noise."""
    names = (_name(classifier), _name(out))
    if "noise" not in training:
        how = [*data, *threat]
        more: list[list[str]] = [[], ["--baseline", f"{names[0]}-report/report.json"]]
        words, kind = ["sfumato", "audit"], "report"
    else:
        front = ["--generator", generator] if generator and "denoiser" in training["hardening"] else []
        how = [*data, "--sigma", f"{training['noise']:g}", *front]
        more, words, kind = [[], []], ["sfumato", "certify"], "cert"
    both = zip((classifier, out), names, more, strict=True)
    return [shlex.join([*words, path, *how, *extra, "-o", f"{name}-{kind}"]) for path, name, extra in both]


def _line(out: str, training: dict[str, Any], before: bool, budget: str) -> str:
    if before:
        return f"{out} has had its {budget} already: give a larger budget to harden it further"
    how = training["hardening"]
    return (
        f"hardened {out} ({how['method']}, {how['norm']} {how['eps']:g}): {training['epochs']:.1f} epochs, "
        f"{training['seconds'] / 60:.1f} minutes"
    )


def _mixed(training: dict[str, Any]) -> list[str]:
    if not (mixed := training.get("generated")):
        return []
    return [
        f"{mixed['share']:.0%} of each batch generated: {mixed['drawn']:,} images drawn in {mixed['seconds']:.0f} s, "
        f"{mixed['agreed']:,} taken for their label, {mixed['kept']:,} of these kept"
    ]


def _name(path: str) -> str:
    """What it is called in the figure: the last part of a path."""
    return Path(path).name or path


class HardeningDisplay(ClassifierDisplay):
    """That of ``sfumato classifier train``, with what the accuracy is here."""

    def text(self, progress: Any) -> str:
        """``0:34 left, loss 0.931, accuracy under attack 61.2%, 1,321 images/s, epoch 3.2``."""
        return super().text(progress).replace("training accuracy", "accuracy on images as trained on")
