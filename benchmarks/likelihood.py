"""Likelihoods: what bits per dimension by three methods cost, and what they say of out-of-distribution images and of classes.

Takes the models that `python -m benchmarks generative` has trained (Fashion-MNIST padded to 32x32); test images, the model
without a label, float32. A second data set, the digits of scikit-learn enlarged, and the same images at a quarter of their
contrast are told from the test images by the bound itself, by the bound less the bits of a PNG, and by the coarsest stage.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.base import record, trial
from benchmarks.base.record import Record
from benchmarks.base.table import Claim, pivot, rows
from benchmarks.features import Features, images
from sfumato.classifiers import Accuracy
from sfumato.core import pictures
from sfumato.core.files import finite
from sfumato.data import ImageSet, load
from sfumato.defences.diffusion_classifier import ALPHA, DRAWS, classify, diffusion_classifier
from sfumato.generator import Generator
from sfumato.likelihood import auroc, integration_figure, png_bits, score

NAME = "likelihood"
COMMANDS = ("likelihood --arms ladder single --minutes 15",)
OUTSIDE = "digits"
FIGURE = "integration.png"
KEYS = ("model", "what", "count")
NOTES = """\
One seed, 15 minutes of training on one core. Times are CPU milliseconds an image of one core that had much other work;
evaluations of the network are the cost to go by; each of the ODE's comes with a backward pass. ± is the standard error over
images. After 2,000 samples the integral still hangs on one of them (median effective number 1.0), with either noise.

Two thirds of these pixels are black. Of the bound, 0.12 bits/dim are the last term (noise of a quarter of an 8-bit step),
0.012 the coarse stage, 0.0001 the prior, and the rest the fine stage. The network was trained with velocity weights, which
care little for noise under 0.02: there it does not know that black is exactly black. The denoiser is therefore given that
images are 8-bit (`on_grid`), which any bound allows: over noise from a sixth of an 8-bit step to three steps (16 images) the
errors fell from 2.65 bits/dim to 1.76, half of it by clipping to [-1, 1].

The enlarged digits are grey where Fashion-MNIST is black, so they are easy; handwritten digits at their own size were not at
hand. The dim images are the known failure: they are *likelier* than real ones. Subtracting what PNG needs mends it.

As a classifier the model needs over a hundred times the passes of a trained one and is well behind. Replayed on the stored
losses of 64 draws, dropping classes early named the full sum's winner for all 100 images, at 252 of 640 evaluations; with 8
draws and no dropping 93 of the 100 winners are the same. Single levels on 100 other test images (23 levels from 0.05 to 40,
one draw each): the 16x16 stage alone, at noise 1 to 6, is right for 68 to 73%, the 32x32 stage below 0.3 for 24 to 37%."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arms", nargs="+", default=["ladder", "single"], help="trained by benchmarks generative")
    parser.add_argument("--minutes", type=float, default=15, help="of the models' training")
    parser.add_argument("--count", type=int, default=100, help="test images")
    parser.add_argument("--few", type=int, default=16, help="of them, for the ODE")
    parser.add_argument("--samples", type=int, default=2000, help="of the integral")
    parser.add_argument("--data", default=trial.FASHION, help="padded to 32x32")


def run(chosen: argparse.Namespace) -> None:
    data = some(images(chosen.data, "test"), chosen.count)
    outside = some(load(OUTSIDE, split="test", size=data.size), chosen.count)
    x, other = (each.pixels(slice(0, len(each))) for each in (data, outside))
    few = f"{chosen.few} images"
    for arm, seed in [(arm, seed) for arm in chosen.arms for seed in chosen.seeds]:
        folder = chosen.runs / f"{arm}-{chosen.minutes:g}min-seed{seed}-threads{chosen.threads}"
        model = Generator.from_pretrained(folder, "cpu")
        measures: dict[str, Callable[[], Record]] = {
            "bound 32": lambda m=model: scored(m, x, "bound", 32),
            f"{OUTSIDE} 32": lambda m=model: told_apart(m, x, other, 32),
            "dim 32": lambda m=model: told_apart(m, x, x / 4, 32),
            f"classifier {DRAWS}": lambda m=model: classified(m, data, DRAWS, ALPHA, "elbo"),
        }
        if arm == chosen.arms[0]:
            measures |= {
                f"bound 32, {few}": lambda m=model: scored(m, x[: chosen.few], "bound", 32),
                f"ode 40, {few}": lambda m=model: scored(m, x[: chosen.few], "ode", 40),
                "integral": lambda m=model: integral(m, x, chosen.samples),
                "classifier 8": lambda m=model: classified(m, data, 8, 0.0, "elbo"),
                f"classifier {DRAWS} velocity": lambda m=model: classified(m, data, DRAWS, ALPHA, "velocity"),
            }
        for what, work in measures.items():
            key = {"model": folder.name, "what": what, "count": chosen.count}
            record.once(NAME, key, chosen.again, work)
    key = {"model": "features", "what": "trained classifier", "count": chosen.count}
    record.once(NAME, key, chosen.again, lambda: by_features(data, chosen.data))


def some(data: ImageSet, count: int, seed: int = 0) -> ImageSet:
    """``count`` images at random, the same ones for the same seed."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(data))[:count])
    labels = None if data.labels is None else data.labels[rows]
    return replace(data, images=np.asarray(data.images[rows]), labels=labels)


def scored(generator: Generator, x: Tensor, method: str, draws: int) -> Record:
    """Bits per dimension of images."""
    found, seconds = trial.timed(lambda: score(generator, x, method=method, draws=draws))
    return {**finite(found.to_json()), "ms_an_image": 1000 * seconds / len(x)}


def told_apart(generator: Generator, x: Tensor, outside: Tensor, draws: int) -> Record:
    """How well out-of-distribution images are told: by the bound, less PNG's bits, and by the coarsest stage alone."""
    inside, other = (score(generator, each, draws=draws) for each in (x, outside))
    coarse = [each.parts["stage 0"] for each in (inside, other)]
    return {
        "inside_bits": inside.mean,
        "outside_bits": other.mean,
        "bits": auroc(inside.bits, other.bits).to_json(),
        "bits_less_png": auroc(inside.bits - png_bits(x), other.bits - png_bits(outside)).to_json(),
        "coarsest_stage": auroc(*coarse).to_json(),
    }


def classified(generator: Generator, data: ImageSet, draws: int, alpha: float, weights: str) -> Record:
    """Accuracy as a classifier, and what it costs."""
    classifier = diffusion_classifier(generator, draws=draws, weights=weights)
    decision, seconds = trial.timed(lambda: classify(classifier, data.pixels(slice(0, len(data))), alpha=alpha))
    return accuracy(decision.label, data, seconds, float(decision.passes.double().mean()))


@torch.no_grad()
def by_features(data: ImageSet, name: str) -> Record:
    """The small classifier of ``features.py`` on the same images."""
    judge, x = Features(name), data.pixels(slice(0, len(data)))
    judge.model(x)
    logits, seconds = trial.timed(lambda: judge.model(x))
    return accuracy(logits.argmax(1), data, seconds, 1)


def accuracy(label: Tensor, data: ImageSet, seconds: float, passes: float) -> Record:
    """The share of right labels, and the cost of an image."""
    right = int((label == torch.from_numpy(data.labels)).sum())
    return {**Accuracy(right, len(data)).to_json(), "passes": passes, "ms_an_image": 1000 * seconds / len(data)}


def integral(generator: Generator, x: Tensor, samples: int, path: Path | None = None) -> Record:
    """The three estimates of the first images as a picture."""
    picture, numbers = integration_figure(generator, x, samples=samples)
    pictures.save(picture, path or record.RESULTS / FIGURE)
    return numbers


def page() -> list[str]:
    kinds: dict[str, list[Record]] = {"bits_per_dim": [], "outside_bits": [], "accuracy": []}
    for each in record.latest(record.read(NAME), KEYS):
        each["model"] = each["model"].removesuffix("-seed0-threads1")
        kind = next((kind for kind in kinds if kind in each), "bits_per_dim")
        kinds[kind] += estimates(each) if "integral" in each else [each]
    for each in kinds["bits_per_dim"]:
        each.setdefault("note", f" ± {each.get('standard_error', 0):.3f}")
        each["ms"] = f"{each['ms_an_image']:.0f}" if "ms_an_image" in each else ""
    area = "{{{0}[auroc]:.3f}} ({{{0}[low]:.3f}} to {{{0}[high]:.3f}})"
    areas = " | ".join(area.format(by) for by in ("bits", "bits_less_png", "coarsest_stage"))
    return [
        "## Bits per dimension",
        rows(
            "model | method, draws or steps | images | bits/dim | evaluations | ms",
            "{model} | {what} | {images} | {bits_per_dim:.3f}{note} | {network_evaluations:,} | {ms}",
            kinds["bits_per_dim"],
        ),
        f"![the three estimates]({FIGURE})",
        "Of the bound's and the ODE's own error:",
        pivot(NAME, "errors", "estimate"),
        "## Out-of-distribution images",
        "100 against 100, area under the ROC curve (95% interval):",
        rows(
            "model | other images, draws | bits/dim | theirs | by the bits | by the bits less a PNG's | by the coarsest stage",
            "{model} | {what} | {inside_bits:.3f} | {outside_bits:.3f} | " + areas,
            kinds["outside_bits"],
        ),
        "## As a classifier",
        "The labels' share in training as usual, all classes on the same noise; `classifier N`: N draws, classes dropped early "
        "but for 8; at most ten times the draws are evaluated.",
        rows(
            "model | method | accuracy (95%) | evaluations | ms",
            "{model} | {what} | {accuracy:.0%} ({low:.0%} to {high:.0%}) | {passes:.0f} | {ms_an_image:.3g}",
            kinds["accuracy"],
        ),
        "By the exponent of weights `s^-a` per log s (1 is velocity, 2 the bound), on the single levels of the notes:",
        pivot(NAME, "weights", "a"),
    ]


def estimates(figure: Record) -> list[Record]:
    """Each estimate of the figure, with all its evaluations."""
    kept = {"model": figure["model"], "images": figure["images"], "note": ""}
    bound, ode = figure["bound"], {**figure["ode"], "what": "ode 40"}
    found: list[Record] = [{**bound, "what": "bound"}, ode]
    for each in figure["integral"]:
        what = f"integral of p(x given z) with noise {each['noise']:g}"
        found.append({**each, "what": what, "note": f" (least possible {each['least']:.1f})"})
    last = {
        name: [each[name][-1] if isinstance(each[name], list) else each[name] for each in found]
        for name in ("bits", "evaluations")
    }
    numbers = zip(found, last["bits"], last["evaluations"], strict=True)
    return [{**kept, **each, "bits_per_dim": bits, "network_evaluations": spent} for each, bits, spent in numbers]


def claims() -> list[Claim]:
    found = {(each["model"].split("-")[0], each["what"]): each for each in record.read(NAME)}
    ours, one = found["ladder", "bound 32"], found["single", "bound 32"]
    mine, theirs = found["ladder", "classifier 32"], found["features", "trained classifier"]
    bits = [f"{each['bits_per_dim']:.2f} ± {each['standard_error']:.2f}" for each in (ours, one)]
    shares = f"{mine['accuracy']:.0%} against {theirs['accuracy']:.0%}"
    intervals = " against ".join(f"{each['low']:.0%} to {each['high']:.0%}" for each in (mine, theirs))
    return [
        Claim(
            "bits per dimension (bound, 15 minutes of training)",
            bits[0],
            "± standard error",
            f"one stage: {bits[1]}",
            COMMANDS[0],
        ),
        Claim("the generator as a classifier: **behind**", shares, intervals, "a trained classifier", COMMANDS[0]),
    ]
