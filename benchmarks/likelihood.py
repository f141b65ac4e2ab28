"""What likelihoods cost and tell on trained models: bits per dimension by three methods, foreign images, classes.

Takes the models that ``benchmarks.generative`` has trained (Fashion-MNIST padded to 32x32), and appends a line for each
measurement to ``results/likelihood.jsonl``; one that is there already is not made again.

    .venv/bin/python -m benchmarks.likelihood --arms ladder single --minutes 15 --seed 0 --threads 1 --trained-threads 1
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine, records
from benchmarks.features import Features, test_data
from benchmarks.trial import runs_folder
from sfumato.classifiers import Accuracy
from sfumato.core import pictures
from sfumato.core.files import finite
from sfumato.data import ImageSet, load
from sfumato.defences.diffusion_classifier import ALPHA, DRAWS, classify, diffusion_classifier
from sfumato.generator import Generator
from sfumato.likelihood import auroc, integration_figure, png_bits, score

NAME = "likelihood"
FOREIGN = "digits"
FIGURE = records.RESULTS / "integration.png"


def some(data: ImageSet, count: int, seed: int = 0) -> ImageSet:
    """``count`` images at random, the same ones for the same seed."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(data))[:count])
    labels = None if data.labels is None else data.labels[rows]
    return replace(data, images=np.asarray(data.images[rows]), labels=labels)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and CPU seconds: other work on the machine counts less than on the wall's clock."""
    began = time.process_time()
    return work(), time.process_time() - began


def scored(generator: Generator, x: Tensor, method: str, draws: int) -> dict[str, Any]:
    """Bits per dimension of images."""
    found, seconds = timed(lambda: score(generator, x, method=method, draws=draws))
    return {**finite(found.to_json()), "ms_an_image": 1000 * seconds / len(x)}


def foreign(generator: Generator, x: Tensor, outside: Tensor, draws: int) -> dict[str, Any]:
    """How well the bound tells foreign images: by itself, less PNG's bits, and by the coarsest stage alone."""
    inside, other = (score(generator, images, draws=draws) for images in (x, outside))
    coarse = [score.parts["stage 0"] for score in (inside, other)]
    return {
        "inside_bits": inside.mean,
        "outside_bits": other.mean,
        "bits": auroc(inside.bits, other.bits).to_json(),
        "bits_less_png": auroc(inside.bits - png_bits(x), other.bits - png_bits(outside)).to_json(),
        "coarsest_stage": auroc(*coarse).to_json(),
    }


def classified(generator: Generator, data: ImageSet, draws: int, alpha: float, weights: str) -> dict[str, Any]:
    """Accuracy as a classifier, and what it costs."""
    classifier = diffusion_classifier(generator, draws=draws, weights=weights)
    decision, seconds = timed(lambda: classify(classifier, data.pixels(slice(0, len(data))), alpha=alpha))
    assert data.labels is not None
    right = int((decision.label == torch.from_numpy(data.labels)).sum())
    passes = float(decision.passes.double().mean())
    return {**Accuracy(right, len(data)).to_json(), "passes": passes, "ms_an_image": 1000 * seconds / len(data)}


def trained(data: ImageSet) -> dict[str, Any]:
    """The small classifier of ``features.py`` on the same images."""
    judge, x = Features(), data.pixels(slice(0, len(data)))
    with torch.no_grad():
        judge.model(x)
        logits, seconds = timed(lambda: judge.model(x))
    assert data.labels is not None
    right = int((logits.argmax(1) == torch.from_numpy(data.labels)).sum())
    return {**Accuracy(right, len(data)).to_json(), "passes": 1, "ms_an_image": 1000 * seconds / len(data)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=["ladder", "single"], help="trained by benchmarks.generative")
    parser.add_argument("--minutes", type=int, default=15, help="of the models' training")
    parser.add_argument("--seed", type=int, default=0, help="of the models")
    parser.add_argument("--trained-threads", type=int, default=1, help="with which the models were trained")
    parser.add_argument("--threads", type=int, default=1, help="to measure with; 0: torch's choice")
    parser.add_argument("--count", type=int, default=100, help="test images")
    parser.add_argument("--few", type=int, default=16, help="of them, for the ODE")
    parser.add_argument("--samples", type=int, default=2000, help="of the integral")
    chosen = parser.parse_args()
    machine.set_threads(chosen.threads)
    data = some(test_data(), chosen.count)
    x = data.pixels(slice(0, len(data)))
    outside = some(load(FOREIGN, split="test", size=data.size), chosen.count)
    strange = outside.pixels(slice(0, len(outside)))
    for arm in chosen.arms:
        folder = runs_folder(None) / f"{arm}-{chosen.minutes}min-seed{chosen.seed}-threads{chosen.trained_threads}"
        generator = Generator.from_pretrained(folder, "cpu")

        def once(what: str, work: Callable[[], dict[str, Any]], model: str = folder.name) -> None:
            key = {"model": model, "what": what, "count": chosen.count}
            if not records.has(records.read(NAME), **key):
                records.append(NAME, {**key, **work()})
            print(records.latest([r for r in records.read(NAME) if records.has([r], **key)], list(key))[-1], flush=True)

        once("bound 32", lambda g=generator: scored(g, x, "bound", 32))
        once(f"{FOREIGN} 32", lambda g=generator: foreign(g, x, strange, 32))
        once("dim 32", lambda g=generator: foreign(g, x, x / 4, 32))
        once(f"classifier {DRAWS}", lambda g=generator: classified(g, data, DRAWS, ALPHA, "elbo"))
        if arm != chosen.arms[0]:
            continue
        once(f"bound 32, {chosen.few} images", lambda g=generator: scored(g, x[: chosen.few], "bound", 32))
        once(f"ode 40, {chosen.few} images", lambda g=generator: scored(g, x[: chosen.few], "ode", 40))
        once("integral", lambda g=generator: figure(g, x, chosen.samples, FIGURE))
        once("classifier 8", lambda g=generator: classified(g, data, 8, 0.0, "elbo"))
        once(f"classifier {DRAWS} velocity", lambda g=generator: classified(g, data, DRAWS, ALPHA, "velocity"))
    once("trained classifier", lambda: trained(data), "features")


def figure(generator: Generator, x: Tensor, samples: int, path: Path) -> dict[str, Any]:
    """The three estimates of the first images as a picture."""
    picture, numbers = integration_figure(generator, x, samples=samples)
    pictures.save(picture, path)
    return numbers


if __name__ == "__main__":
    main()
