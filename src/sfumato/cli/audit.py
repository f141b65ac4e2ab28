"""``sfumato audit``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sfumato.cli import options
from sfumato.cli.console import counting, resumable, say, show
from sfumato.cli.options import option
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sfumato.classifiers import Classifier
    from sfumato.defences import Purifier

DONE, GATE_FAILED = 0, 1


def audit(
    classifier: options.ClassifierArgument,
    data: options.DataOption,
    out: options.RunFolder,
    norm: options.NormOption = "Linf",
    eps: options.EpsOption = "8/255",
    count: options.CountOption = 500,
    screening: bool = False,
    min_robust_accuracy: float | None = None,
    baseline: Path | None = None,
    purify: str | None = None,
    purified: int = 32,
    sigma: Annotated[float | None, option("--purify-sigma")] = None,
    steps: Annotated[int | None, option("--purify-steps")] = None,
    *,
    fitting: options.Fitting,
    common: options.Common,
) -> int:
    """Robustness audit: an ensemble of attacks (AutoAttack's and more), checks for gradient masking, one HTML report.

    Args:
        count: Number of test images to attack.
        screening: Screening protocol: without the most expensive attacks, a weaker bound.
        min_robust_accuracy: CI gate: exit status 1 where even the upper end of the 95% interval is below this.
            Default: no gate.
        baseline: Baseline to compare with: the report.json of another audit. Default: of what CLF was hardened from.
        purify: MODEL: Diffusion purification: also audit CLF behind this model. Default: none.
        purified: Number of the images to attack behind the purifier.
        sigma: Noise level of purification, of pixels in [0, 1]. Default: as of purify.
        steps: Steps of purification. Default: as of purify.
    """
    radius = options.read_eps(eps)
    if min_robust_accuracy is not None and not 0 <= min_robust_accuracy <= 1:
        raise InputError(f"--min-robust-accuracy {min_robust_accuracy:g} is no share: give a number from 0 to 1")
    pixels = fitting.pixels
    if purify is None and (sigma is not None or steps is not None):
        raise InputError("--purify-sigma and --purify-steps are of a purifier: name one with --purify MODEL")
    if purified < 1:
        raise InputError(f"--purified {purified} leaves nothing to attack: give 1 or more")
    options.check_folder(out)
    from sfumato.audit import audit as run
    from sfumato.audit import audit_purification, find_baseline, read_report, write_report
    from sfumato.classifiers import find_classifier

    if baseline is not None:
        read_report(baseline)  # before anything is done
    found = find_classifier(classifier, common.device)
    given = {name: value for name, value in {"sigma": sigma, "steps": steps}.items() if value is not None}
    purifier = None if purify is None else _purifier(found, purify, norm, common.device, **given)
    wanted = pixels or found.size or (None if purifier is None else purifier.ladder.size)
    images = options.load_images(data, wanted, fitting.fit, "test")
    with resumable():
        with counting(f"auditing {classifier}") as progress:
            how: dict[str, Any] = {"norm": norm, "eps": radius, "count": count, "seed": common.seed, "name": classifier}
            protocol = "screening" if screening else "standard"
            audited = run(found, images, **how, out=out, protocol=protocol, progress=progress, remark=say)
        behind = None
        if purifier is not None and purify is not None:
            with counting(f"attacking {classifier} behind {purify}") as progress:
                more: dict[str, Any] = {"count": purified, "out": out, "model": purify, "remark": say}
                behind = audit_purification(found, purifier, images, audited, **more, progress=progress)
    came_from = None if baseline is not None else _hardened_from(classifier)
    if came_from and (baseline := find_baseline(out, came_from, audited)):
        say(f"beside the classifier that this one was hardened from: {baseline.parent.name}/{baseline.name}")
    report = write_report(audited, out, min_robust_accuracy=min_robust_accuracy, baseline=baseline, purification=behind)
    show(_lines(report, out), report, common.json)
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


def _purifier(found: Classifier, model: str, norm: str, device: str, **given: Any) -> Purifier:
    from sfumato.attacks.norms import check_norm
    from sfumato.defences import Purifier, check_compatible
    from sfumato.generator import Generator

    check_norm(norm, ("Linf", "L2", "L1"), "an attack on a purifier")
    generator = Generator.from_pretrained(model, device)
    check_compatible(found, generator)
    return Purifier.of(generator, **given)


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
