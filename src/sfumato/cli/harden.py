"""``sfumato harden``."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

from sfumato.cli import options
from sfumato.cli.classifier import EpochsOption, MinutesOption
from sfumato.cli.console import counting, resumable, say, show, waiting
from sfumato.cli.training import follow_training

IMAGES = 500


def harden(
    classifier: options.ClassifierArgument,
    data: options.DataOption,
    out: options.RunFolder,
    method: str = "trades",
    norm: str = "Linf",
    eps: options.EpsOption = "8/255",
    generator: str | None = None,
    share: float = 0.3,
    minutes: MinutesOption = None,
    epochs: EpochsOption = None,
    fit: options.FitOption = "crop",
    count: options.CountOption = IMAGES,
    *,
    common: options.Common,
) -> None:
    """Train a classifier further, on adversarial examples of it, or on noisy images. Re-run the command to resume.

    Args:
        method: Adversarial training: trades, pgd or fast (one step, with a guard). For certify, with its --sigma as
            --eps: noise (Gaussian augmentation) or denoised (noisy images, denoised by --generator).
        norm: Norm of the perturbation: Linf or L2.
        generator: MODEL: Diffusion model whose samples are mixed in, those that CLF takes for their label; with
            method denoised its denoiser. Default: none.
        share: Share of each batch that is generated.
        count: Number of test images to measure on, before and after.
    """
    radius, seed, device = options.read_eps(eps), common.seed, common.device
    options.check_count(count)
    options.check_folder(out)
    from sfumato.classifiers import find_classifier, load_classifier, read_description
    from sfumato.defences.hardening.adversarial_training import METHODS, Threat
    from sfumato.defences.hardening.harden import HardeningRequest, check_trainable, hardening_steps
    from sfumato.defences.hardening.landscape import PICTURE, loss_landscape, picture, report, save_report, table
    from sfumato.engine import Budget
    from sfumato.generator import Generator

    METHODS.find(method)  # all of it before the images are decoded: that may take its time
    Threat(norm, radius)
    if minutes is not None or epochs is not None:
        Budget(minutes, epochs=epochs)
    before = find_classifier(classifier, device)
    check_trainable(before)
    asked: dict[str, Any] = {"norm": norm, "eps": radius, "seed": seed}
    how = asked | {"minutes": minutes, "epochs": epochs, "method": method, "share": share, "fit": fit}
    request = HardeningRequest(classifier=before, data=data, out=out, **how)
    budget = request.budget
    model = None if generator is None else Generator.from_pretrained(generator, device)
    options.load_images(data, before.size, fit)  # into the cache, with a bar
    with resumable(), counting(f"sampling images for {out}") as sampling:
        steps = hardening_steps(replace(request, generator=model, sampling=sampling))
    last = follow_training(steps, f"hardening {out} for {budget}")
    after = load_classifier(out, device)
    x, y = _tested(before, data, fit, count)
    with counting("measuring") as progress:
        first, second = (loss_landscape(one, x, y, **asked, progress=progress) for one in (before, after))
    names = (options.name_of(classifier), options.name_of(str(out)))
    with waiting("drawing the boundaries"):
        views = picture(before, after, x, y, names=names, **asked)
    described = read_description(out)
    own = ["--data", data, *(["--fit", fit] if fit != "crop" else [])]
    follow = _follow(classifier, str(out), own, ["--norm", norm, "--eps", eps], described["training"], generator)
    about = {"classifier": classifier, "hardened": str(out), "data": data, "norm": norm, "eps": radius}
    about |= {"images": len(x), "seed": seed, "training": described["training"], "test": described["test"]}
    about["boundary"] = views if isinstance(views, str) else [f"{each.title}: {each.caption}" for each in views.panels]
    found = report(first, second, **about)
    save_report(out, found, views)
    lines = [_line(str(out), described["training"], last is None, str(budget)), *_mixed(described["training"]), ""]
    lines += table(first, second, norm, radius)
    if isinstance(views, str):
        say(f"there is no picture of the boundaries: {views}")
    else:
        lines += ["", f"picture: {out / PICTURE}"]
    lines += [f"next: {follow[0]}", f"then: {follow[1]}"]
    show(lines, {**found, "done_before": last is None, "next": follow}, common.json)


def _tested(classifier: Any, data: str, fit: str, count: int) -> Any:
    """Test images at random, always the same, and their labels."""
    import numpy as np

    from sfumato.classifiers import match_labels

    images = options.load_images(data, classifier.size, fit, "test")
    rows = np.sort(np.random.RandomState(0).permutation(len(images))[:count])
    return images.pixels(rows), match_labels(classifier, images)[rows]


def _follow(
    classifier: str, out: str, data: list[str], threat: list[str], training: dict[str, Any], generator: str | None
) -> list[str]:
    """The commands that tell what hardening was worth: two audits, or two certifications of what was trained with noise."""
    names = (options.name_of(classifier), options.name_of(str(out)))
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
