"""``sfumato audit``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.attack import ClassifierArgument, read_eps
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

    from sfumato.classifiers import Classifier
    from sfumato.defences import Purifier

DONE, GATE_FAILED = 0, 1


def audit(
    classifier: ClassifierArgument,
    data: DataOption,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of the report; if it holds a part of this audit, it goes on.")
    ],
    norm: Annotated[str, typer.Option("--norm", help="Linf, L2, L1 or L0.")] = "Linf",
    eps: Annotated[
        str, typer.Option("--eps", help="Size of the perturbations, of pixels in [0, 1]: 8/255 or 0.5.")
    ] = "8/255",
    count: Annotated[int, typer.Option("-n", "--count", help="How many images to draw and attack.")] = 500,
    screening: Annotated[
        bool, typer.Option("--screening", help="Leave the most expensive attacks out: a weaker upper bound.")
    ] = False,
    min_robust_accuracy: Annotated[
        float | None,
        typer.Option(
            "--min-robust-accuracy",
            help="A gate: exit status 1 where even the upper end of the 95% interval is below this.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            help="The report.json of another audit, to show beside. Default: of what CLF was hardened from, if near.",
            show_default=False,
        ),
    ] = None,
    purify: Annotated[
        str | None,
        typer.Option(
            "--purify", metavar="MODEL", help="Also audit CLF behind this generator as a purifier.", show_default=False
        ),
    ] = None,
    purified: Annotated[int, typer.Option("--purified", help="How many of the images to attack behind it.")] = 32,
    sigma: Annotated[
        float | None,
        typer.Option(
            "--purify-sigma", help="Its noise, of pixels in [0, 1]. Default: as of purify.", show_default=False
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--purify-steps", help="Its steps. Default: as of purify.", show_default=False)
    ] = None,
    fit: FitOption = "crop",
    size: SizeOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Attack a classifier by every means, and write a report: how robust it is, and what that number is worth."""
    radius = read_eps(eps)
    if min_robust_accuracy is not None and not 0 <= min_robust_accuracy <= 1:
        raise InputError(f"--min-robust-accuracy {min_robust_accuracy:g} is no share: give a number from 0 to 1")
    pixels = read_size(size)
    if purify is None and (sigma is not None or steps is not None):
        raise InputError("--purify-sigma and --purify-steps are of a purifier: name one with --purify MODEL")
    if purified < 1:
        raise InputError(f"--purified {purified} leaves nothing to attack: give 1 or more")
    check_folder(out)
    from sfumato.audit import audit as run
    from sfumato.audit import audit_purification, find_baseline, read_report, write_report
    from sfumato.classifiers import find_classifier

    if baseline is not None:
        read_report(baseline)  # before anything is done
    found = find_classifier(classifier, device)
    purifier = None if purify is None else _purifier(found, purify, sigma, steps, norm, device)
    wanted = pixels or found.size or (None if purifier is None else purifier.ladder.size)
    images = load_images(data, wanted, fit, "test")
    try:
        with counting(f"auditing {classifier}") as progress:
            audited = run(
                found, images, norm=norm, eps=radius, count=count, seed=seed, out=out, name=classifier,
                protocol="screening" if screening else "standard", progress=progress, remark=say,
            )  # fmt: skip
        washed = None
        if purifier is not None and purify is not None:
            with counting(f"attacking {classifier} behind {purify}") as progress:
                washed = audit_purification(
                    found,
                    purifier,
                    images,
                    audited,
                    count=purified,
                    out=out,
                    model=purify,
                    progress=progress,
                    remark=say,
                )
    except KeyboardInterrupt:
        raise Interrupted("stopped: the same command goes on from there") from None
    came_from = None if baseline is not None else _hardened_from(classifier)
    if came_from and (baseline := find_baseline(out, came_from, audited)):
        say(f"beside the classifier that this one was hardened from: {baseline.parent.name}/{baseline.name}")
    report = write_report(audited, out, min_robust_accuracy=min_robust_accuracy, baseline=baseline, purification=washed)
    show(_lines(report, out), report, as_json)
    return GATE_FAILED if report["gate"] and not report["gate"]["passed"] else DONE


def _hardened_from(classifier: str) -> str | None:
    """The weights of the classifier that this one was hardened from; None where it was not."""
    from sfumato.classifiers import read_description

    if not Path(classifier).exists():
        return None
    with suppress(InputError):  # no classifier of sfumato's own
        training = read_description(classifier).get("training")
        return training.get("from") if isinstance(training, dict) else None
    return None


def _purifier(
    found: Classifier, model: str, sigma: float | None, steps: int | None, norm: str, device: str
) -> Purifier:
    from sfumato.attacks.norms import check_norm
    from sfumato.cli.purify import purifier_of
    from sfumato.defences import check_compatible
    from sfumato.generator import Generator

    check_norm(norm, ("Linf", "L2", "L1"), "an attack on a purifier")
    generator = Generator.from_pretrained(model, device)
    check_compatible(found, generator)
    return purifier_of(generator, sigma, steps)


def _lines(report: Mapping[str, Any], out: Path) -> list[str]:
    from sfumato.audit.purification import lines as purification_lines
    from sfumato.audit.report import PAGE

    rows = [(each["title"], each["robust"], each["fooled_8bit"] is None) for each in report["attacks"]]
    rows = [("no attack", report["clean"], False), *rows, ("worst case", report["robust"], False)]
    rows = [(f"  {title}" if member else title, robust, member) for title, robust, member in rows]
    width = max(len(title) for title, _, _ in rows)
    lines = [report["verdict"], ""]
    lines += [f"  {title:<{width}}  {r['accuracy']:>6.1%}  ({r['low']:.1%} to {r['high']:.1%})" for title, r, _ in rows]
    for light in ("red", "amber"):
        lines += [
            line
            for check in report["checks"]
            if check["light"] == light
            for line in ("", f"{light}: {check['name']}. {check['found']}", f"  {check['meaning']} {check['advice']}")
        ]
    if report["purification"]:
        lines += ["", *purification_lines(report["purification"])]
    if report["baseline"]:
        lines += ["", report["baseline"]["sentence"], *report["baseline"]["remarks"]]
        rows = (report["baseline"]["purification"] or {"rows": ()})["rows"]
        lines += ["", "Behind a purifier, the baseline and now:"] if rows else []
        lines += [f"  {r['title']:<31}  {r['before']['accuracy']:>6.1%}  {r['now']['accuracy']:>6.1%}" for r in rows]
    if report["gate"]:
        asked = f"{report['gate']['min_robust_accuracy']:.1%} robust accuracy asked for, at most {report['robust']['high']:.1%} found"
        lines += ["", f"gate {'passed' if report['gate']['passed'] else 'failed'}: {asked} (95% confidence)"]
    return [*lines, "", f"report: {out / PAGE}"]
