"""What the generator knows of a given image: how likely it is, and what it shows."""

from __future__ import annotations

import shlex

import torch
from markupsafe import Markup
from torch import Tensor

from sfumato import data
from sfumato.core import pictures
from sfumato.defences.diffusion_classifier import classify, diffusion_classifier
from sfumato.lecture.section import Picture, Section, Subject, part
from sfumato.likelihood import auroc, integration_figure, png_bits, score

EXTREMES = 8  # images shown of each end
FEW = 2  # images of the figure's means: its exact likelihood takes its time

LIKELIHOOD = Markup(
    "max<sub><i>θ</i></sub> ∑<sub><i>x</i></sub> log <i>p</i>(<i>x</i>), &emsp; "
    "<i>p</i>(<i>x</i>) = ∫<sub><i>z</i></sub> <i>p</i>(<i>x</i> | <i>z</i>) <i>p</i>(<i>z</i>)"
    ' &emsp; <span class="aside">integration is slow…</span>'
)
BOUND = Markup(
    "−log <i>p</i>(<i>x</i>) ≤ ∑<sub><i>t</i></sub> <i>w<sub>t</sub></i> E ‖ <i>x̂</i>(<i>z<sub>t</sub></i>) − <i>x</i> ‖<sup>2</sup> + const"
)
BAYES = Markup(
    "<i>ĉ</i> = argmax<sub><i>c</i></sub> <i>p</i>(<i>c</i> | <i>x</i>) ≈ argmin<sub><i>c</i></sub> ∑<sub><i>t</i></sub> "
    "<i>w<sub>t</sub></i> E ‖ Dec<sub><i>t</i></sub>(<i>z</i><sub><i>t</i>−1</sub>, <i>c</i>) − <i>z<sub>t</sub></i> ‖<sup>2</sup>"
)


@part("How likely is an image?", LIKELIHOOD, BOUND)
def likelihood(subject: Subject) -> Section:
    """Bits per dimension of test images, the ends of their order, foreign images, and three ways to the number."""
    generator, sizes = subject.generator, subject.sizes
    x, _ = subject.some(sizes.scored)
    other, foreign = _foreign(subject, x)
    inside, outside = (score(generator, images, draws=sizes.draws, seed=subject.seed) for images in (x, other))
    order = inside.bits.argsort()
    shown = min(EXTREMES, len(order))
    ends = pictures.grid(x[torch.cat([order[:shown], order[-shown:]])], columns=shown)
    plain = auroc(inside.bits, outside.bits)
    complexity = auroc(inside.bits - png_bits(x), outside.bits - png_bits(other))
    figure, paths = integration_figure(generator, x[:FEW], samples=sizes.integrated, seed=subject.seed)
    low, high = float(inside.bits.min()), float(inside.bits.max())
    integral = paths["integral"][0]
    said = (
        f"Bits per dimension say how many bits a pixel takes to write down under the model: 8 for pure noise, less is "
        f"likelier. {len(x)} test images have {inside.mean:.2f} on average, from {low:.2f} to {high:.2f}. Simple ones come "
        "first as a rule, busy ones last.",
        f"{foreign[0].upper()}{foreign[1:]}, which the model has never seen, have {outside.mean:.2f}. Told apart by their bits "
        f"alone, a random one of them scores higher than a random test image in {plain.value:.0%} of all pairs; by their bits "
        f"less those of a PNG file, in {complexity.value:.0%}. "
        + ("Below 50% the order is wrong: simple foreign images look likelier than the model’s own. " if plain.value < 0.5 else "")
        + "50% would be no better than a coin.",
        f"Why nobody integrates: {paths['samples']:,} images drawn from p(z) and compared with x took {integral['evaluations'][-1]:,} "
        f"evaluations of the network and leave the estimate at {integral['bits'][-1]:.1f} bits, for so few of them come near that "
        f"{integral['effective_samples']:.1f} count. The chain’s loss bounds the same number by {paths['bound']['bits'][-1]:.2f} after "
        f"{paths['bound']['evaluations'][-1]:,}, and the exact change of variables along it gives {paths['ode']['bits']:.2f} after "
        f"{paths['ode']['evaluations']:,} (means over {paths['images']} images).",
    )  # fmt: skip
    run = shlex.quote(str(subject.run))
    against = "" if foreign.startswith("the same") else " --against digits"
    return Section(
        text=said,
        pictures=(
            Picture(pictures.named_rows(ends, ["fewest bits", "most bits"]), "the likeliest and the unlikeliest test images",
                    wide=True),
            Picture(figure, "three estimates of the likelihood against their cost", wide=True),
        ),
        commands=(
            f"sfumato score {run} --data {subject.test.name}{against} -o scores",
            f"sfumato score {run} --data {subject.test.name} --method integral -n 8 -o integral",
        ),
        numbers={"inside": inside.to_json(), "outside": outside.to_json(), "foreign": foreign, "low": low, "high": high,
                 "bits": plain.to_json(), "bits_less_png": complexity.to_json(), "integration": paths},
    )  # fmt: skip


def _foreign(subject: Subject, x: Tensor) -> tuple[Tensor, str]:
    """As many images that the model was not made for, and what they are."""
    if subject.test.name == "digits":
        return x.flip(2), "the same digits upside down"
    height, width = subject.generator.ladder.size
    found = data.load("digits", split="test", size=(height, width)).pixels(slice(len(x)))  # (n, 1, H, W)
    return found.expand(-1, subject.generator.ladder.channels, -1, -1).contiguous(), "handwritten digits"


@part("The generator as a classifier", BAYES)
def generator_as_classifier(subject: Subject) -> Section:
    """Each image to the class under which the generator denoises it best."""
    x, y = subject.some(subject.sizes.classified)
    own = diffusion_classifier(subject.generator, subject.classifier.labels, seed=subject.seed)
    decision = classify(own, x)
    right = decision.label == y
    trained = subject.classifier.predict(x).cpu() == y
    passes = float(decision.passes.float().mean())
    picked = _picked(decision.shares, right)
    labels = subject.classifier.labels
    drawn = []
    for i in picked:
        share, best = decision.shares[i].max(0)
        truth = "right" if right[i] else f"wrong: it is {labels[int(y[i])]}"
        drawn.append(Picture(pictures.grid(x[i : i + 1], scale=3, gap=0), f"test image of {labels[int(y[i])]}",
                             f"{labels[int(best)]}, {float(share):.0%}: {truth}", pixelated=True))  # fmt: skip
    said = (
        "By Bayes’ rule the same denoiser is a classifier: an image belongs to the class under which it is denoised best. "
        f"Of {len(x)} test images this is right for {int(right.sum())}; the classifier that was trained for the task for "
        f"some seconds, for {int(trained.sum())}. It takes {passes:.0f} evaluations of the network an image, although classes "
        "that are clearly worse are dropped early.",
    )
    commands = [f"sfumato classify {shlex.quote(str(subject.run))} --data {subject.test.name} -n 200"]
    if not subject.verbs or "purify" in subject.verbs:
        said += ("It can also clean an attacked image before a classifier sees it, by adding noise and denoising: purification, "
                 "which only an attack that knows of it can judge.",)  # fmt: skip
        commands.append(f"sfumato purify {shlex.quote(str(subject.run))} attacked/adversarial/*.png -o clean")
    return Section(
        text=said,
        pictures=tuple(drawn),
        columns=4,
        commands=tuple(commands),
        numbers={"images": len(x), "right": int(right.sum()), "trained_right": int(trained.sum()), "passes": passes},
    )


def _picked(shares: Tensor, right: Tensor) -> list[int]:
    """Four images to show: of the right ones the least sure, of the wrong ones the surest, two of each where there are."""
    sure = shares.amax(1)
    order = sure.argsort().tolist()
    hits, misses = [i for i in order if right[i]], [i for i in reversed(order) if not right[i]]
    wrong = misses[: max(2, 4 - len(hits))]
    return hits[: 4 - len(wrong)] + wrong
