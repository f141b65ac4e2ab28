"""The generator as a density model: the likelihood of a given image, and the class that explains it best."""

from __future__ import annotations

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
    """Bits per dimension of test images, the likeliest and unlikeliest, out-of-distribution images, and three estimators."""
    generator, sizes = subject.generator, subject.sizes
    x, _ = subject.some(sizes.scored)
    other, kind = _out_of_distribution(subject, x)
    inside, outside = (score(generator, images, draws=sizes.draws, seed=subject.seed) for images in (x, other))
    order = inside.bits.argsort()
    shown = min(EXTREMES, len(order))
    ends = pictures.grid(x[torch.cat([order[:shown], order[-shown:]])], columns=shown)
    plain = auroc(inside.bits, outside.bits)
    complexity = auroc(inside.bits - png_bits(x), outside.bits - png_bits(other))
    figure, paths = integration_figure(generator, x[:FEW], samples=sizes.integrated, seed=subject.seed)
    low, high = float(inside.bits.min()), float(inside.bits.max())
    integral, bound, ode = paths["integral"][0], paths["bound"], paths["ode"]
    wrong = "Below 0.5 the order is wrong: a simple unknown image looks likelier than the training data. "
    text = (
        "Bits per dimension are the negative log-likelihood in base 2, divided by the number of pixel values: 8 for uniform noise, "
        f"lower is likelier. {len(x)} test images have {inside.mean:.2f} on average, from {low:.2f} to {high:.2f}. Simple "
        "shapes are usually the likeliest, detailed ones the unlikeliest.",
        f"Out-of-distribution images, here {kind}, have {outside.mean:.2f}. As a detector of them the likelihood has an AUROC of "
        f"{plain.value:.2f}; after the length of the image’s PNG file is subtracted (input complexity), {complexity.value:.2f}. "
        f"{wrong if plain.value < 0.5 else ''}Chance is 0.5.",
        "Why nobody integrates over z: "
        f"{paths['samples']:,} samples from p(z), compared with x, cost {integral['evaluations'][-1]:,} network evaluations and "
        f"leave the estimate at {integral['bits'][-1]:.1f} bits per dimension; the effective sample size is "
        f"{integral['effective_samples']:.1f}. The variational bound gives {bound['bits'][-1]:.2f} for "
        f"{bound['evaluations'][-1]:,} evaluations, and the exact change of variables along the probability-flow ODE "
        f"{ode['bits']:.2f} for {ode['evaluations']:,} (means over {paths['images']} images).",
    )
    _, run, name = subject.names
    against = "" if kind.startswith("the same") else " --against digits"
    ordered = pictures.named_rows(ends, ["fewest bits", "most bits"])
    sets = {"inside": inside.to_json(), "outside": outside.to_json(), "out_of_distribution": kind}
    found = {"bits": plain.to_json(), "bits_less_png": complexity.to_json(), "integration": paths}
    numbers = {**sets, "low": low, "high": high, **found}
    return Section(
        text=text,
        pictures=(
            Picture(ordered, "the likeliest and the unlikeliest test images", wide=True),
            Picture(figure, "three estimates of the likelihood against their cost", wide=True),
        ),
        commands=(
            f"sfumato score {run} --data {name}{against} -o scores",
            f"sfumato score {run} --data {name} --method integral -n 8 -o integral",
        ),
        numbers=numbers,
    )


def _out_of_distribution(subject: Subject, x: Tensor) -> tuple[Tensor, str]:
    """As many images of another kind than the training data, and what they are."""
    if subject.test.name == "digits":
        return x.flip(2), "the same digits upside down"
    height, width = subject.generator.ladder.size
    found = data.load("digits", split="test", size=(height, width)).pixels(slice(len(x)))  # (n, 1, H, W)
    return found.expand(-1, subject.generator.ladder.channels, -1, -1).contiguous(), "handwritten digits"


@part("The generator as a classifier", BAYES)
def generator_as_classifier(subject: Subject) -> Section:
    """Each image is assigned to the class under which the generator denoises it best."""
    x, y = subject.some(subject.sizes.classified)
    own = diffusion_classifier(subject.generator, subject.classifier.labels, seed=subject.seed)
    decision = classify(own, x)
    right = decision.label == y
    trained = subject.classifier.predict(x).cpu() == y
    passes = float(decision.passes.float().mean())
    picked = _picked(decision.shares, right)
    labels = subject.classifier.labels
    shown = []
    for i in picked:
        (share, best), truth = decision.shares[i].max(0), labels[int(y[i])]
        caption = f"{labels[int(best)]}, {float(share):.0%}: {'right' if right[i] else f'wrong: it is {truth}'}"
        tile = pictures.grid(x[i : i + 1], scale=3, gap=0)
        shown.append(Picture(tile, f"test image of {truth}", caption, pixelated=True))
    text = (
        "By Bayes’ rule a conditional diffusion model is also a classifier (diffusion classifier): the predicted class is the "
        f"one under which the image is denoised best. This is right for {int(right.sum())} of {len(x)} test images; the "
        f"classifier that was trained for the task, for a few seconds, is right for {int(trained.sum())}. It takes "
        f"{passes:.0f} network evaluations an image, although classes that are clearly worse are dropped early.",
    )
    _, run, name = subject.names
    commands = [f"sfumato classify {run} --data {name} -n 200"]
    if not subject.verbs or "purify" in subject.verbs:
        text += (
            "The same denoiser can also remove an adversarial perturbation before the classifier sees the image: add noise, "
            "then denoise (purification). Only an adaptive attack, with gradients through the purification, can judge it.",
        )
        commands.append(f"sfumato purify {run} attacked/adversarial/*.png -o clean")
    return Section(
        text=text,
        pictures=tuple(shown),
        columns=4,
        commands=tuple(commands),
        numbers={"images": len(x), "right": int(right.sum()), "trained_right": int(trained.sum()), "passes": passes},
    )


def _picked(shares: Tensor, right: Tensor) -> list[int]:
    """Four images to show: two right ones of the lowest confidence, two wrong ones of the highest, where there are."""
    sure = shares.amax(1)
    order = sure.argsort().tolist()
    hits, misses = [i for i in order if right[i]], [i for i in reversed(order) if not right[i]]
    wrong = misses[: max(2, 4 - len(hits))]
    return hits[: 4 - len(wrong)] + wrong
