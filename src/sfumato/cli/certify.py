"""``sfumato certify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from sfumato.cli import options
from sfumato.cli.console import counting, resumable, say, show
from sfumato.cli.options import option
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping


def certify(
    classifier: options.ClassifierArgument,
    data: options.DataOption,
    sigma: float,
    out: options.RunFolder,
    generator: str | None = None,
    count: options.CountOption = 500,
    radii: str | None = None,
    mode: str = "sequential",
    alpha: float = 0.001,
    samples: int = 100_000,
    selection: Annotated[int, option("--n0")] = 100,
    attacked: int = 50,
    batch_size: int | None = None,
    *,
    fitting: options.Fitting,
    common: options.Common,
) -> None:
    """Randomized smoothing: certified accuracy at L2 radii, of the smoothed classifier.

    Args:
        sigma: Smoothing noise: standard deviation, of pixels in [0, 1]: 0.12 to 1.
        generator: MODEL: Denoised smoothing: this diffusion model denoises in front of CLF. Default: CLF sees the
            noise.
        count: Number of test images to certify.
        radii: L2 radii to decide about: 0.25,0.5. Default: sigma/2, sigma, 3/2 and 2 sigma.
        mode: sequential (test stops when all radii are decided) or cohen (all --samples).
        alpha: Failure probability of an image's certificate, at most.
        samples: Noise samples (n) of an image, at most.
        selection: Noise samples (n0) that select the class to certify.
        attacked: Number of the images to attack as well; 0 for none.
        batch_size: Noise samples at once. Default: by the device.
    """
    pixels = fitting.pixels
    options.check_folder(out)
    distances = options.read_radii(radii)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: give 1 or more")
    from sfumato.classifiers import find_classifier
    from sfumato.defences import CertificationRequest, SmoothingSettings, certify_data
    from sfumato.defences.smoothing.certified_accuracy import PICTURE
    from sfumato.generator import Generator

    settings = SmoothingSettings(sigma, selection, samples, alpha, mode, distances, common.seed, batch_size)
    request = CertificationRequest(settings, count, attacked, (classifier, generator or ""))
    found = find_classifier(classifier, common.device)
    model = None if generator is None else Generator.from_pretrained(generator, common.device)
    wanted = pixels or found.size or (None if model is None else model.ladder.size)
    images = options.load_images(data, wanted, fitting.fit, "test")
    with resumable(), counting(f"certifying {classifier}") as progress:
        made = certify_data(found, images, request, generator=model, out=out, progress=progress, remark=say)
    made.save(out)
    show([*_lines(made.report), "", f"picture: {out / PICTURE}"], {**made.report, "out": str(out)}, common.json)


def _lines(report: Mapping[str, Any]) -> list[str]:
    lines = [report["verdict"], "", f"  {'L2 radius':>9}  {'Linf':>7}  {'certified':<26}  attacked: robust / certified"]
    for row in report["table"]:
        here, empirical, same = row["certified"], row["empirical"], row["certified_attacked"]
        share = f"{here['accuracy']:>6.1%}  ({here['low']:.1%} to {here['high']:.1%})"
        attack = f"{empirical['accuracy']:.1%} / {same['accuracy']:.1%} of {same['count']}" if empirical else "-"
        undecided = f"   {row['undecided']} undecided" if row["undecided"] else ""
        lines.append(f"  {row['radius']:>9.3g}  {row['linf']:>7.4f}  {share:<26}  {attack}{undecided}")
    draws, attack = report["draws"], report["attack"]
    copies = f"{draws['median']:,.0f} noise samples an image (median; 95%: {draws['p95']:,.0f})"
    abstained = f"{report['abstained']} of {report['data']['images']} images abstain"
    lines += ["", f"The L1 certificate is that of L2. {abstained}; {copies}."]
    if attack and attack["contradictions"]:
        lines.append(
            f"{attack['contradictions']} attacked images were fooled within their certified radius: more than a share of "
            "alpha means that the classifier is not deterministic, or a bug"
        )
    return lines
