"""The lecture's second half: adversarial perturbations, decision boundaries before and after smoothing, and a certificate."""

from __future__ import annotations

import io
import math

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
from sfumato.defences import CertificationRequest, SmoothingSettings, certify_data
from sfumato.defences.smoothing.certify import PixelDenoiser
from sfumato.defences.smoothing.figure import draw
from sfumato.lecture.section import Absent, Picture, Section, Subject, part

SIZES = tuple(k / 255 for k in (4, 8, 16, 32, 64))  # eps of the attack, Linf
STEP = 0.25  # of eps, each step of the ascent that is shown
SHOWN = 3
SIGMA = 0.25  # of the smoothing, of pixels in [0, 1]
L2 = 1 / 28  # of the attack before and after smoothing, for each dimension: 1 for 28x28 pixels
AROUND = 64  # images from which the ones to show are chosen

DESCENT = Markup("training: &ensp; <i>θ</i> ← <i>θ</i> − <i>α</i> ∇<sub><i>θ</i></sub> L(<i>θ</i>)")
STEP_UP = "<i>x</i> ← <i>x</i> + <i>α</i> ∇<sub><i>x</i></sub> l(<i>f<sub>θ</sub></i>(<i>x</i>), <i>y</i>)"
ASCENT = Markup(f"attack: &ensp; {STEP_UP}")
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
    """Gradient ascent on the input: how many images are fooled at which eps, and the most confident wrong answers."""
    classifier, sizes = subject.classifier, subject.sizes
    x, y = _right(subject, sizes.attacked, 1)
    fooled, by_chance = [], []
    signs = torch.randn(x.shape, generator=torch.Generator().manual_seed(subject.seed)).sign()
    for eps in SIZES:
        fooled.append(int(_fooled(subject, classifier, x, y, "Linf", eps).sum()))
        by_chance.append(int((classifier.predict((x + eps * signs).clamp(0, 1)).cpu() != y).sum()))
    chosen = next((i for i, count in enumerate(fooled) if 2 * count >= len(x)), len(SIZES) - 1)
    eps = SIZES[chosen]
    some = x[:AROUND], y[:AROUND]
    found = ascend_images(classifier, *some, eps, sizes.steps)
    tiles, shown = _triples(classifier, *some, found, eps)
    text = (
        "Training descends the gradient of the loss in the weights; an attack ascends the gradient of the same loss in the "
        "image. In the L∞ norm no pixel may change by more than ε, so each step adds the sign of the gradient (PGD). With "
        f"ε = {size(eps, 'Linf')}, {fooled[chosen]} of {len(x)} test images that were classified correctly are misclassified; "
        f"random noise of the same size does that to {by_chance[chosen]}. The perturbation is not random: it is carefully "
        "selected to fool the model.",
        "Below are the examples with the highest confidence before and after: the image, the perturbation "
        f"({NOISE_SCALE} times as strong, around grey), and their sum with the new prediction. The pictures are stored with 8 "
        "bits a pixel, and fool the classifier as they are."
        if shown
        else f"The ascent that would be shown here fooled none of its {len(some[0])} images at this size.",
    )
    counts = zip(SIZES, fooled, by_chance, strict=True)
    rows = [(size(e, "Linf"), f"{a} of {len(x)}", f"{b} of {len(x)}") for e, a, b in counts]
    folder, _, name = subject.names
    on = f"{folder} --data {name}"
    numbers = {"images": len(x), "eps": eps, "strengths": list(SIZES), "fooled": fooled, "by_chance": by_chance}
    return Section(
        text=text,
        pictures=tiles,
        columns=3,
        table=(("ε (largest change of a pixel)", "fooled by PGD", "by random noise of that size"), *rows),
        commands=(
            f"sfumato attack {on} --attack pgd --eps {size(eps, 'Linf')} -o attacked",
            f"sfumato audit {on} --norm Linf --eps {size(eps, 'Linf')} -o report",
        ),
        numbers={**numbers, "shown": shown},
    )


def ascend_images(classifier: Classifier, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """The lecture's ``x <- x + a grad_x l(f(x), y)`` in the ball of Linf radius eps, (B, C, H, W) of 8-bit values.

    Its steps are the gradient's signs (Kurakin et al. 2017, arXiv 1607.02533). It goes on beyond the decision boundary, to
    confident wrong answers; ``attacks.pgd`` stops at the boundary.
    """

    def slope(found: Tensor, _: int) -> Tensor:
        return gradients(classifier, found, cross_entropy, (y,))[2]

    with classifier.ready():
        return (ascend(x, slope, norm="Linf", eps=eps, steps=steps, step=STEP) * 255).round() / 255


Triples = tuple[tuple[Picture, ...], list[dict[str, object]]]


def _triples(classifier: Classifier, x: Tensor, y: Tensor, found: Tensor, eps: float) -> Triples:
    """Image, perturbation and sum of the most confident successes, one a class; and what was predicted."""
    success = verified(classifier, x, found, y, norm="Linf", eps=eps).success
    before, after = (classifier.logits(images).softmax(1) for images in (x, found))
    labels, tiles, shown = classifier.labels, [], []
    for i in torch.minimum(before.amax(1), after.amax(1)).argsort(descending=True).tolist():
        truth = labels[int(y[i])]
        if not success[i] or any(each["label"] == truth for each in shown):
            continue
        (confidence, predicted), (surer, wrong) = before[i].max(0), after[i].max(0)
        change = f"the perturbation, {NOISE_SCALE} times as strong"
        for tile, alt, caption in (
            (x[i], f"test image of {truth}", f"{labels[int(predicted)]}, {float(confidence):.1%}"),
            (noise(x[i], found[i]), change, f"+ perturbation (x{NOISE_SCALE})"),
            (found[i], f"adversarial example of {truth}", f"= {labels[int(wrong)]}, {float(surer):.1%}"),
        ):
            tiles.append(Picture(pictures.grid(tile[None], scale=1, gap=0), alt, caption, pixelated=True))
        shown.append({"label": truth, "becomes": labels[int(wrong)], "confidence": float(surer)})
        if len(shown) == SHOWN:
            break
    return tuple(tiles), shown


class Smoothed(nn.Module):
    """Pixels to the log of the mean softmax over noisy copies, each denoised in one step: a fixed, differentiable function.

    Args:
        classifier: f.
        denoise: D, such as ``Generator.denoise``.
        e: (K, C, H, W) standard normal noise of the K copies; it serves all images.
        sigma: standard deviation that it is scaled to.
    """

    def __init__(self, classifier: Classifier, denoise: PixelDenoiser, e: Tensor, sigma: float = SIGMA) -> None:
        super().__init__()
        self.classifier, self.denoise, self.sigma = classifier, denoise, sigma
        self.register_buffer("e", e)

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
    e = torch.randn(copies, *shape, generator=torch.Generator().manual_seed(subject.seed))
    module = Smoothed(subject.classifier, generator.denoise, e).to(generator.device)
    shapes = {"size": generator.ladder.size, "channels": generator.ladder.channels}
    batch = max(1, 128 // copies)
    return Classifier(module, labels=subject.classifier.labels, device=generator.device, batch_size=batch, **shapes)


@part("The decision boundary, before and after smoothing", SMOOTHED)
def boundaries(subject: Subject) -> Section:
    """The plane through three images before and after smoothing, and the same attack on both."""
    sizes, both, names = subject.sizes, [subject.classifier, smoothed(subject)], ("as trained", "smoothed")
    x, y = subject.some(AROUND)
    rows = right_rows(both, x, y)
    if len(rows) < 3:
        raise Absent(
            f"Left out: of {len(x)} test images only {len(rows)} are classified correctly with and without smoothing, and "
            "the picture needs three: train longer (--minutes)."
        )
    how = {"names": names, "seed": subject.seed, "resolution": sizes.resolution}
    views = boundary(both[0], x, y, other=both[1], kind="plane", **how)
    few = x[rows[: sizes.smoothed]], y[rows[: sizes.smoothed]]
    length = round(L2 * math.sqrt(x[0].numel()), 2)
    fooled = [int(_fooled(subject, each, *few, "L2", length).sum()) for each in both]
    kept = [int((each.predict(x).cpu() == y).sum()) for each in both]
    images = [_drawn(compose([[panel]], views.labels)) for panel in views.panels]
    high = max(image.height for image in images)  # their legends differ
    images = [ImageOps.pad(image, (image.width, high), color="white", centering=(0, 0)) for image in images]
    text = (
        "Decision regions in the plane through three test images: every point is a mixture of the three. First the classifier "
        f"as trained, then the same classifier smoothed: {sizes.copies} copies of the input get Gaussian noise (σ = {SIGMA:g}), "
        "the generator denoises them, and the predicted probabilities are averaged.",
        f"PGD with exact gradients through all of it, of L2 size {length:g}, fools {fooled[0]} of {len(few[0])} images as trained "
        f"and {fooled[1]} smoothed; both classify all of them correctly without the attack. With so few images the difference is "
        f"uncertain. The price: of {len(x)} test images {kept[0]} are classified correctly as trained, {kept[1]} smoothed. A "
        "failed attack proves nothing; the next part gives a proof.",
    )
    numbers = {"images": len(x), "right": kept, "attacked": len(few[0]), "fooled": fooled, "sigma": SIGMA, "l2": length}
    folder, _, name = subject.names
    own = f"sfumato boundary {folder} --data {name} -o boundary.png"
    return Section(
        text=text,
        pictures=tuple(Picture(i, f"decision regions, {name}") for i, name in zip(images, names, strict=True)),
        columns=2,
        commands=(own, "sfumato boundary --kind toy -o toy.png"),
        numbers=numbers,
    )


@part("A certificate", RADIUS)
def certificate(subject: Subject) -> Section:
    """Certified accuracy of the smoothed classifier on a handful of images."""
    sizes = subject.sizes
    names = (str(subject.classifier_folder), str(subject.run))
    settings = SmoothingSettings(SIGMA, n=sizes.samples, seed=subject.seed)
    request = CertificationRequest(settings, sizes.certified, 0, names)
    report = certify_data(subject.classifier, subject.test, request, generator=subject.generator).report
    table, draws = report["table"], report["draws"]
    count = table[0]["certified"]["count"]
    certified = ", ".join(f"{row['certified']['correct']} at radius {row['radius']:.3g}" for row in table[1:])
    text = (
        "Randomized smoothing (Cohen et al. 2019): p is a lower confidence bound of the probability that a noisy copy of x gets "
        "the most frequent class. Then no perturbation of L2 norm below R changes the prediction of the smoothed classifier g, "
        "whatever the attack. The certificate holds for g, and for each image with a confidence of "
        f"{1 - report['smoothing']['alpha']:.1%}.",
        f"Of {count} test images {table[0]['certified']['correct']} are classified correctly with a certificate; certified correct "
        f"are {certified}. An image takes {draws['median']:,.0f} noisy copies (median), selection of the class included. The "
        f"band in the picture is the confidence interval for {count} images.",
    )
    folder, run, name = subject.names
    figure = Image.open(io.BytesIO(draw(report))).convert("RGB")
    certify = f"sfumato certify {folder} --generator {run} --data {name} --sigma {SIGMA:g} -n 500 -o certificates"
    return Section(
        text=text,
        pictures=(Picture(figure, "certified accuracy against the L2 radius", wide=True),),
        commands=(certify,),
        numbers={"table": table, "draws": draws, "abstained": report["abstained"], "sigma": SIGMA},
    )


def _right(subject: Subject, count: int, least: int) -> tuple[Tensor, Tensor]:
    """The correctly classified of ``count`` images; Absent where there are fewer than ``least``."""
    x, y = subject.some(count)
    rows = right_rows([subject.classifier], x, y)
    if len(rows) < least:
        raise Absent(f"Left out: none of {len(x)} test images is classified correctly: train longer (--minutes).")
    return x[rows], y[rows]


def _fooled(subject: Subject, classifier: Classifier, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
    found = pgd(classifier, x, y, norm=norm, eps=eps, steps=subject.sizes.steps, seed=subject.seed)
    return verified(classifier, x, found, y, norm=norm, eps=eps).success


def _drawn(figure: object) -> Image.Image:
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=110, facecolor="white")  # type: ignore[attr-defined]
    return Image.open(encoded).convert("RGB")
