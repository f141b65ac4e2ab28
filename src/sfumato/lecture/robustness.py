"""The lecture's second half: adversarial perturbations, decision boundaries before and after smoothing, and a certificate."""

from __future__ import annotations

import io
import math
import shlex

import torch
from markupsafe import Markup
from PIL import Image, ImageOps
from torch import Tensor, nn

from sfumato.attacks import pgd, verified
from sfumato.attacks.ascent import ascend
from sfumato.attacks.batching import gradients
from sfumato.attacks.losses import cross_entropy
from sfumato.audit.figures import NOISE_SCALE, noise
from sfumato.audit.summary import size
from sfumato.boundary import boundary
from sfumato.boundary.figure import compose
from sfumato.boundary.views import right_rows
from sfumato.classifiers import Classifier
from sfumato.core import pictures
from sfumato.defences.smoothing.certify import PixelDenoiser
from sfumato.lecture.section import Absent, Picture, Section, Subject, Table, part

STRENGTHS = (4 / 255, 8 / 255, 16 / 255, 32 / 255, 64 / 255)  # of the attack, Linf
STEP = 0.25  # of that, each step of the ascent that is shown
SHOWN = 3
SIGMA = 0.25  # of the smoothing, of pixels in [0, 1]
L2 = 1 / 28  # of the attack before and after smoothing, for each dimension: 1 for 28x28 pixels
AROUND = 64  # images among which those that are shown are looked for

DESCENT = Markup("training: &ensp; <i>θ</i> ← <i>θ</i> − <i>α</i> ∇<sub><i>θ</i></sub> L(<i>θ</i>)")
ASCENT = Markup(
    "attack: &ensp; <i>x</i> ← <i>x</i> + <i>α</i> ∇<sub><i>x</i></sub> l(<i>f<sub>θ</sub></i>(<i>x</i>), <i>y</i>)"
)
SMOOTHED = Markup(
    "<i>g</i>(<i>x</i>) = argmax<sub><i>c</i></sub> P[ <i>f</i>(Dec(<i>x</i> + <i>σε</i>)) = <i>c</i> ], &ensp; "
    "<i>ε</i> ~ <i>N</i>(0, <i>I</i>)"
)
RADIUS = Markup(
    "<i>g</i>(<i>x</i> + <i>δ</i>) = <i>g</i>(<i>x</i>) &ensp; whenever &ensp; ‖<i>δ</i>‖<sub>2</sub> &lt; <i>R</i> = "
    "<i>σ</i> Φ<sup>−1</sup>(<i>p</i>)"
)


@part("Adversarial perturbations", DESCENT, ASCENT)
def attack(subject: Subject) -> Section:
    """Gradient ascent on the input: how many images fall at which size, and the surest wrong answers."""
    classifier, sizes = subject.classifier, subject.sizes
    x, y = _right(subject, sizes.attacked, 1)
    fell, strayed = [], []
    signs = torch.randn(x.shape, generator=torch.Generator().manual_seed(subject.seed)).sign()
    for eps in STRENGTHS:
        found = pgd(classifier, x, y, norm="Linf", eps=eps, steps=sizes.steps, seed=subject.seed)
        fell.append(int(verified(classifier, x, found, y, norm="Linf", eps=eps).success.sum()))
        strayed.append(int((classifier.predict((x + eps * signs).clamp(0, 1)).cpu() != y).sum()))
    chosen = next((i for i, count in enumerate(fell) if 2 * count >= len(x)), len(STRENGTHS) - 1)
    eps = STRENGTHS[chosen]
    some = x[:AROUND], y[:AROUND]
    found = ascend_images(classifier, *some, eps, sizes.steps)
    drawn, shown = _triples(classifier, *some, found, eps)
    said = (
        "The same gradient, taken in the image and not in the weights, and climbed and not descended. Each pixel may change by "
        f"{size(eps, 'Linf')} of the way from black to white at most, so the steps are the gradient’s signs. Of {len(x)} test images "
        f"that the classifier gets right, {fell[chosen]} are then taken for something else; random noise of the same size does "
        f"that to {strayed[chosen]}. The noise is not random: it is carefully selected to fool the model.",
        f"Below, some of those where it is surest, before and after: the image, what was added ({NOISE_SCALE} times as strong, around grey), "
        "and the sum with the classifier’s answer. The pictures hold 8 bits a pixel, and fool it as they are."
        if shown
        else f"The ascent that is to be shown fooled none of its {len(some[0])} images at this size.",
    )
    rows = tuple(
        (size(e, "Linf"), f"{a} of {len(x)}", f"{b} of {len(x)}")
        for e, a, b in zip(STRENGTHS, fell, strayed, strict=True)
    )
    folder = shlex.quote(str(subject.classifier_folder))
    return Section(
        text=said,
        pictures=drawn,
        columns=3,
        table=Table(("change of a pixel, at most", "fooled by gradient ascent", "by random noise of that size"), rows),
        commands=(
            f"sfumato attack {folder} --data {subject.test.name} --attack pgd --eps {size(eps, 'Linf')} -o attacked",
            f"sfumato audit {folder} --data {subject.test.name} --norm Linf --eps {size(eps, 'Linf')} -o report",
        ),
        numbers={"images": len(x), "eps": eps, "strengths": list(STRENGTHS), "fooled": fell, "by_chance": strayed, "shown": shown},
    )  # fmt: skip


def ascend_images(classifier: Classifier, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """The lecture's ``x <- x + a grad_x l(f(x), y)`` in the ball of Linf radius eps, (B, C, H, W) of 8-bit values.

    Its steps are the gradient's signs (Kurakin et al. 2017, arXiv 1607.02533), and it goes on behind the boundary, up to
    answers that are sure; ``attacks.pgd`` stops at the boundary.
    """

    def slope(found: Tensor, _: int) -> Tensor:
        return gradients(classifier, found, cross_entropy, (y,))[2]

    with classifier.ready():
        return (ascend(x, slope, norm="Linf", eps=eps, steps=steps, step=STEP) * 255).round() / 255


def _triples(classifier: Classifier, x: Tensor, y: Tensor, found: Tensor, eps: float) -> tuple[tuple[Picture, ...], list[dict[str, object]]]:  # fmt: skip
    """Image, noise and sum where the classifier is sure before and sure after, one a class; and what was answered."""
    success = verified(classifier, x, found, y, norm="Linf", eps=eps).success
    before, after = (classifier.logits(images).softmax(1) for images in (x, found))
    labels, drawn, shown = classifier.labels, [], []
    for i in torch.minimum(before.amax(1), after.amax(1)).argsort(descending=True).tolist():
        truth = labels[int(y[i])]
        if not success[i] or any(each["label"] == truth for each in shown):
            continue
        (sure, said), (surer, wrong) = before[i].max(0), after[i].max(0)
        tiles = (
            (x[i], f"test image of {truth}", f"{labels[int(said)]}, {float(sure):.1%}"),
            (noise(x[i], found[i]), f"what was added, {NOISE_SCALE} times as strong", f"+ noise (x{NOISE_SCALE})"),
            (found[i], f"adversarial image of {truth}", f"= {labels[int(wrong)]}, {float(surer):.1%}"),
        )
        drawn += [Picture(pictures.grid(tile[None], scale=1, gap=0), alt, caption, pixelated=True) for tile, alt, caption in tiles]  # fmt: skip
        shown.append({"label": truth, "becomes": labels[int(wrong)], "confidence": float(surer)})
        if len(shown) == SHOWN:
            break
    return tuple(drawn), shown


class Smoothed(nn.Module):
    """Pixels to the log of the mean answer over noisy copies, each denoised in one step: a fixed, differentiable function.

    Args:
        classifier: f.
        denoise: D, such as ``Generator.denoise``.
        shape: of an image, (C, H, W).
        copies: how many; their noise is drawn once, from the seed, and serves all images.
        sigma: of the noise.
    """

    def __init__(self, classifier: Classifier, denoise: PixelDenoiser, shape: tuple[int, ...], copies: int, sigma: float = SIGMA, seed: int = 0) -> None:  # fmt: skip
        super().__init__()
        self.classifier, self.denoise, self.sigma = classifier, denoise, sigma
        self.register_buffer("e", torch.randn(copies, *shape, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor) -> Tensor:
        e = self.get_buffer("e")
        noisy = (x[:, None] + self.sigma * e).flatten(0, 1)  # (B copies, C, H, W)
        shares = self.classifier(self.denoise(noisy, self.sigma), bounded=False).softmax(1)
        mean = shares.unflatten(0, (len(x), len(e))).mean(1)  # (B, K)
        return mean.clamp_min(1e-12).log()


def smoothed(subject: Subject) -> Classifier:
    """The subject's classifier behind the generator's denoiser, averaged over noisy copies."""
    generator, copies = subject.generator, subject.sizes.copies
    shape = generator.ladder.shape(generator.ladder.stages - 1)
    module = Smoothed(subject.classifier, generator.denoise, shape, copies, seed=subject.seed).to(generator.device)
    return Classifier(module, labels=subject.classifier.labels, size=generator.ladder.size, channels=generator.ladder.channels,
                      device=generator.device, batch_size=max(1, 128 // copies))  # fmt: skip


@part("The decision boundary, before and after smoothing", SMOOTHED)
def boundaries(subject: Subject) -> Section:
    """The plane through three images before and after smoothing, and the same attack on both."""
    sizes, both = subject.sizes, [subject.classifier, smoothed(subject)]
    x, y = subject.some(AROUND)
    rows = right_rows(both, x, y)
    if len(rows) < 3:
        raise Absent(f"Left out: of {len(x)} test images only {len(rows)} are classified right with and without smoothing, "
                     "and the picture needs three: train longer (--minutes).")  # fmt: skip
    views = boundary(both[0], x, y, other=both[1], kind="plane", names=("as trained", "smoothed"), seed=subject.seed,
                     resolution=sizes.resolution)  # fmt: skip
    few = x[rows[: sizes.smoothed]], y[rows[: sizes.smoothed]]
    length = round(L2 * math.sqrt(x[0].numel()), 2)
    fell = [int(_felled(each, *few, length, sizes.steps, subject.seed).sum()) for each in both]
    kept = [int((each.predict(x).cpu() == y).sum()) for each in both]
    images = [_drawn(compose([[panel]], views.labels)) for panel in views.panels]
    high = max(image.height for image in images)  # their legends differ
    images = [ImageOps.pad(image, (image.width, high), color="white", centering=(0, 0)) for image in images]
    drawn = tuple(
        Picture(image, f"decision regions, {name}")
        for image, name in zip(images, ("as trained", "smoothed"), strict=True)
    )
    said = (
        f"First the classifier as trained. Then the same one, smoothed: {sizes.copies} noisy copies of an image (standard deviation "
        f"{SIGMA:g}) are denoised by the generator, classified, and their answers averaged. Every place in a picture is a mixture "
        "of the three images that stand in it.",
        f"An attack of L2 length {length:g} with exact gradients through all of it fools {fell[0]} of {len(few[0])} images as trained and "
        f"{fell[1]} smoothed, all of which both get right without it; so few images tell little of the difference. What it costs: of {len(x)} images {kept[0]} are right as "
        f"trained, {kept[1]} smoothed. That an attack fails proves nothing; the next part does.",
    )
    folder = shlex.quote(str(subject.classifier_folder))
    return Section(
        text=said,
        pictures=drawn,
        columns=2,
        commands=(f"sfumato boundary {folder} --data {subject.test.name} -o boundary.png", "sfumato boundary --kind toy -o toy.png"),
        numbers={"images": len(x), "right": kept, "attacked": len(few[0]), "fooled": fell, "sigma": SIGMA, "l2": length},
    )  # fmt: skip


@part("A certificate", RADIUS)
def certificate(subject: Subject) -> Section:
    """Certified accuracy of the smoothed classifier on a handful of images."""
    from sfumato.defences import CertificationRequest, SmoothingSettings, certify_data
    from sfumato.defences.smoothing.figure import draw

    sizes = subject.sizes
    names = (str(subject.classifier_folder), str(subject.run))
    settings = SmoothingSettings(SIGMA, n=sizes.samples, seed=subject.seed)
    request = CertificationRequest(settings, sizes.certified, 0, names)
    report = certify_data(subject.classifier, subject.test, request, generator=subject.generator).report
    table, draws = report["table"], report["draws"]
    count = table[0]["certified"]["count"]
    proved = ", ".join(f"{row['certified']['correct']} within {row['radius']:.3g}" for row in table[1:])
    said = (
        f"p is a lower bound of how often noisy copies of x get the commonest answer. Then no change of L2 length under R turns the "
        f"smoothed classifier’s answer, whoever makes it and however: this is a proof, wrong for an image with a probability of at "
        f"most {report['smoothing']['alpha']:g}.",
        f"Of {count} test images {table[0]['certified']['correct']} are answered rightly and for certain; {proved} are proved to stay so. "
        f"It took {draws['median']:,.0f} noisy copies an image (median), those included that choose the answer. "
        f"The band says how far {count} images can speak for all.",
    )
    folder, run = (shlex.quote(name) for name in names)
    return Section(
        text=said,
        pictures=(Picture(Image.open(io.BytesIO(draw(report))).convert("RGB"), "certified accuracy against the L2 radius", wide=True),),
        commands=(f"sfumato certify {folder} --generator {run} --data {subject.test.name} --sigma {SIGMA:g} -n 500 -o certificates",),
        numbers={"table": table, "draws": draws, "abstained": report["abstained"], "sigma": SIGMA},
    )  # fmt: skip


def _right(subject: Subject, count: int, least: int) -> tuple[Tensor, Tensor]:
    """The images among ``count`` that the classifier gets right; Absent where they are fewer than ``least``."""
    x, y = subject.some(count)
    rows = right_rows([subject.classifier], x, y)
    if len(rows) < least:
        raise Absent(f"Left out: the classifier gets none of {len(x)} test images right, so there is nothing to fool: "
                     "train longer (--minutes).")  # fmt: skip
    return x[rows], y[rows]


def _felled(classifier: Classifier, x: Tensor, y: Tensor, eps: float, steps: int, seed: int) -> Tensor:
    found = pgd(classifier, x, y, norm="L2", eps=eps, steps=steps, seed=seed)
    return verified(classifier, x, found, y, norm="L2", eps=eps).success


def _drawn(figure: object) -> Image.Image:
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=110, facecolor="white")  # type: ignore[attr-defined]
    return Image.open(encoded).convert("RGB")
