"""One call that measures a generator: distances, variety, labels, memorisation, each beside its baseline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.classifiers import effnet
from sfumato.core.errors import InputError
from sfumato.metrics.distances import frechet_distance, kernel_distance
from sfumato.metrics.features import FEATURES, FeatureSpace, reference_features, subset
from sfumato.metrics.manifold import density_coverage, precision_recall
from sfumato.metrics.neighbours import memorisation
from sfumato.metrics.retrieval import Retrieval, find_judge, own_image

if TYPE_CHECKING:
    from sfumato.data import ImageSet

LEAST = 10  # samples
_DRAW = 256  # images asked of the generator at once
_MANIFOLD = 10_000  # images at most where the work grows with the square: manifolds and nearest images
_HELD_OUT = 5  # samples at most for each caption of a test image
_PRECISION_K, _COVERAGE_K = 3, 5  # neighbours, as in the papers


class Samples(Protocol):
    """What is evaluated: a ``sfumato.Generator``, or anything else with class names that draws images.

    One that draws from texts has ``kinds.tokens`` over 0, and takes a ``prompt``, as a Generator does.
    """

    classes: tuple[str, ...]

    def sample(self, n: int = ..., label: Any = ..., **how: Any) -> Tensor: ...


@dataclass(frozen=True)
class EvaluationRequest:
    """What an evaluation is asked.

    Args:
        n: how many samples, 10 or more; 2,000 for numbers to compare, 10,000 or more to publish.
        features: names in ``FEATURES``; None picks ``classifier`` for labelled data, else ``effnet-lite0``,
            or ``image-text`` for captioned data where that is not installed.
        judge: of captions: a CLIP of transformers or a saved embedding; None trains one on the training images.
        seed: of the samples and of the random subsets.
        steps, sampler, guidance: as in ``Generator.sample``.
    """

    n: int = 2000
    features: Sequence[str] | None = None
    judge: str | None = None
    seed: int = 0
    steps: int | Sequence[int] | None = None
    sampler: str | None = None
    guidance: float | None = None


def evaluate(
    generator: Samples,
    data: ImageSet,
    train: ImageSet,
    *,
    progress: Callable[[int, int], None] | None = None,
    on_samples: Callable[[ImageSet], object] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Draw samples and compare them with real images.

    The reference is the training split, as is the field's custom. So that the numbers have a scale, each stands beside
    ``test vs train``: the same number for as many real images of the test split as there are samples (fewer only where
    the split has fewer; its ``n`` says so). A good model comes near that row; one that copies its training images may
    fall below it, and then ``neighbours`` tells. Frechet distances from few images are biased upwards: compare
    only at equal ``n``, reference, feature space and hash, all of which are in the result.

    Samples are rounded to 8 bits, as if saved, and their labels go round the classes evenly. A model of texts draws what
    the captions of training images say, in turn, and beside that, for ``retrieval`` alone, what those of test images say.

    Args:
        generator: draws the images; its own ``device`` also runs the feature networks.
        data: the test split, at the generator's size.
        train: the training split: the reference.
        progress: called with (done, total) units of work.
        on_samples: called with the samples once they are drawn, for a picture (see ``report.picture``).
        options: the fields of ``EvaluationRequest``; others go to ``generator.sample``.

    Returns:
        JSON-ready dictionary: ``samples``, ``seed``, ``sampler``, ``steps``, ``guidance``, ``network_evaluations`` (of
        the denoiser, an image, or None), ``seconds``, ``reference``, ``test``, ``features`` (a dictionary by space, see
        ``compare``), ``conditional`` and ``retrieval`` (or None), ``neighbours`` (see ``memorisation``).

    Raises:
        InputError: too few images, unlabelled data for the classifier, sizes or classes that do not match.
    """
    request = EvaluationRequest(**options)
    request = replace(request, sampler=request.sampler or getattr(generator, "default_sampler", None))
    seed, steps = request.seed, request.steps
    labelled, captioned, makers = _planned(request, generator, data, train)
    judged = labelled and bool(generator.classes)
    asked, held_out = _captions(train, data, request.n, seed) if captioned else ((), ())
    device = torch.device(getattr(generator, "device", "cpu"))
    work = _Work(progress, request.n + len(held_out) + len(train) * (len(makers) + 1))
    began = time.perf_counter()

    spaces = {name: make(train, device) for name, make in makers.items()}  # fails early where something is missing
    teacher = (spaces.get("classifier") or FEATURES["classifier"](train, device)) if judged else None
    retrieval = Retrieval(find_judge(train, device, request.judge), train, data, seed) if captioned else None
    built = time.perf_counter()
    unseen = None
    with _counted(generator) as passed:
        samples = _draw(generator, train, request, work, asked)
        if held_out:
            apart = replace(request, n=len(held_out), seed=seed + (1 << 32))
            unseen = _draw(generator, train, apart, work, held_out)
    drawn = time.perf_counter()
    if on_samples is not None:
        on_samples(samples)

    results, found = {}, {}
    for name, space in spaces.items():
        found[name] = space.of(samples)
        results[name] = _both(space, found[name], data, train, seed)
        work.add(len(train))

    def features_in(space: FeatureSpace) -> Tensor:
        return found[space.name] if space.name in found else space.of(samples)

    conditional = None if teacher is None else _conditional(teacher, features_in(teacher), samples, data)
    retrieved = None
    if retrieval is not None:
        space = retrieval.judge.space
        retrieved = retrieval.describe() | {
            "train": retrieval(features_in(space), asked),
            "train_real": retrieval.of_real(train),
            "held_out": None if unseen is None else retrieval(space.of(unseen), held_out),
            "held_out_real": None if unseen is None else retrieval.of_real(data),
            "own_image": {
                name: own_image(found[name], asked, reference_features(space, train), train)
                for name, space in spaces.items()
                if len(train) <= space.limit
            },
        }
    shown = min(request.n, _MANIFOLD)
    some = np.sort(np.random.default_rng(seed).permutation(len(data))[:shown])
    neighbours = memorisation(subset(samples, np.arange(shown)), subset(data, some), train)
    work.add(len(train))
    ended = time.perf_counter()
    seconds = {"features": built - began + ended - drawn, "sampling": drawn - built, "total": ended - began}
    return {
        "samples": request.n,
        "seed": seed,
        "sampler": request.sampler,
        "steps": list(steps) if isinstance(steps, Sequence) else steps,
        "guidance": request.guidance,
        "labels": "even over classes" if generator.classes and not captioned else None,
        "prompts": "captions of training images" if captioned else None,
        "network_evaluations": sum(passed) / (request.n + len(held_out)) if passed else None,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "reference": _identity(train),
        "test": _identity(data),
        "features": results,
        "conditional": conditional,
        "retrieval": retrieved,
        "neighbours": neighbours,
    }


def _planned(
    request: EvaluationRequest, generator: Samples, data: ImageSet, train: ImageSet
) -> tuple[bool, bool, dict[str, Callable[[ImageSet, torch.device], FeatureSpace]]]:
    """Whether the data has labels, whether the model draws from captions, and what makes the feature spaces; InputError."""
    n = request.n
    if n < LEAST or min(len(data), len(train)) < LEAST:
        problem = f"n={n} samples, {len(data)} test and {len(train)} training images"
        raise InputError(f"{problem}: each must be {LEAST} or more to measure anything")
    if (data.size, data.channels) != (train.size, train.channels):
        problem = f"the test images {(*data.size, data.channels)} and the training images"
        raise InputError(f"{problem} {(*train.size, train.channels)} differ in (H, W, C): load both at one size")
    if foreign := [name for name in generator.classes if train.classes and name not in train.classes]:
        problem = f"the model draws {foreign[0]!r}, which {train.name} has no images of"
        raise InputError(f"{problem}: give the data that the model was trained on")
    labelled = train.labels is not None and len(train.classes) > 1
    captioned = bool(getattr(getattr(generator, "kinds", None), "tokens", 0)) and train.captions is not None
    if captioned and data.captions is None:
        raise InputError(f"{data.name} has captions in its {train.split} split alone: give captions for both")
    if request.judge is not None and not captioned:
        problem = "a judge of captions was given, but there are none to judge"
        raise InputError(f"{problem}: give captioned data, and a model of texts")
    makers = {name: FEATURES.find(name) for name in request.features or (_default_space(train, labelled),)}
    if "classifier" in makers and not labelled:
        problem = f"{train.name} has no labels, or one class only, so there is no classifier to take features"
        raise InputError(f"{problem} from: use effnet-lite0 (pip install sfumato[metrics])")
    return labelled, captioned, makers


def compare(features: Tensor, reference: Tensor, seed: int = 0) -> dict[str, Any]:
    """All numbers for (N, D) features against those of a reference (M, D).

    ``frechet`` and ``kernel`` use the whole reference, ``precision``, ``recall`` (k = 3), ``density`` and ``coverage``
    (k = 5) as many random images of it as there are features, at most 10,000; None where there are too few.
    """
    size = min(len(features), len(reference), _MANIFOLD)
    rows = torch.from_numpy(np.random.default_rng(seed).permutation(len(reference))[:size])
    real, fake = reference[rows], features[:size]
    precision = recall = density = coverage = None
    if size > _PRECISION_K:
        precision, recall = precision_recall(real, fake, _PRECISION_K)
    if size > _COVERAGE_K:
        density, coverage = density_coverage(real, fake, _COVERAGE_K)
    kernel, spread = kernel_distance(features, reference, seed=seed)
    distance = frechet_distance(features, reference)
    distances = {"n": len(features), "frechet": distance, "kernel": kernel, "kernel_std": spread}
    manifolds = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
    return {**distances, "manifold_n": size, **manifolds}


def _both(space: FeatureSpace, drawn: Tensor, data: ImageSet, train: ImageSet, seed: int) -> dict[str, Any]:
    """The model's row and the baseline's in one feature space."""
    reference, held_out = reference_features(space, train), reference_features(space, data)
    rows = torch.from_numpy(np.random.default_rng(seed).permutation(len(held_out))[: len(drawn)])
    about = {"hash": space.digest, "dimension": space.dimension, "reference_n": len(reference)}
    rows_of = {"model vs train": drawn, "test vs train": held_out[rows]}
    return about | {row: compare(features, reference, seed) for row, features in rows_of.items()}


def _conditional(judge: FeatureSpace, found: Tensor, samples: ImageSet, data: ImageSet) -> dict[str, Any] | None:
    """How often the classifier sees the label that was asked for, and how often it is right about real test images."""
    asked = samples.labels
    if asked is None:
        return None
    right = judge.predict(found) == asked
    real = None
    if data.labels is not None and data.classes == samples.classes and len(data) <= judge.limit:
        real = float((judge.predict(reference_features(judge, data)) == data.labels).mean())
    return {
        "accuracy": float(right.mean()),
        "classifier_test_accuracy": real,
        "classifier_hash": judge.digest,
        "by_class": {samples.classes[c]: float(right[asked == c].mean()) for c in np.unique(asked)},
    }


def _default_space(train: ImageSet, labelled: bool) -> str:
    if labelled:
        return "classifier"
    return "image-text" if train.captions is not None and not effnet.installed() else "effnet-lite0"


def _captions(train: ImageSet, data: ImageSet, n: int, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The captions to draw: ``n`` of training images, in turn, and some of test images, if any is no training image's."""
    from sfumato.training.contrastive import captions_of

    known = list(dict.fromkeys(texts[0] for texts in captions_of(train)))
    new = [text for text in dict.fromkeys(texts[0] for texts in captions_of(data)) if text not in set(known)]
    numbers = np.random.default_rng(seed)
    count = min(n, _HELD_OUT * len(new), max(len(new), n // 5))
    return tuple(
        tuple(texts[i] for i in np.resize(numbers.permutation(len(texts)), size))
        for texts, size in ((known, n), (new, count))
    )  # type: ignore[return-value]


def _draw(
    generator: Samples, train: ImageSet, request: EvaluationRequest, work: _Work, captions: Sequence[str]
) -> ImageSet:
    """The samples as 8-bit images, with what was asked for: captions, or labels in numbers of ``train.classes``."""
    from sfumato.core.pictures import to_bytes
    from sfumato.data import ImageSet

    n, classes = request.n, generator.classes
    how = {"steps": request.steps, "guidance": request.guidance, "sampler": request.sampler}
    numbers = np.arange(n) % max(1, len(classes))  # (n,) in the generator's numbering
    shape = (train.channels, *train.size)
    parts = []
    for start in range(0, n, _DRAW):
        labels = [int(i) for i in numbers[start : start + _DRAW]]
        # A seed of its own for each call, unrelated to the seeds of other evaluations.
        own = int(np.random.SeedSequence((request.seed, start)).generate_state(1)[0])
        c = {"prompt": list(captions[start : start + _DRAW])} if captions else {"label": labels if classes else None}
        pixels = generator.sample(len(labels), **c, seed=own, **how)  # (B, C, H, W)
        if tuple(pixels.shape) != (len(labels), *shape):
            problem = f"the model draws images of (C, H, W) = {tuple(pixels.shape[1:])}, {train.name} has {shape}"
            raise InputError(f"{problem}: load the data at the model's size")
        parts.append(to_bytes(pixels))
        work.add(len(labels))
    if captions:
        return ImageSet(np.concatenate(parts), None, (), "samples", "test", tuple((text,) for text in captions))
    asked = None
    if classes and train.classes:
        asked = np.array([train.classes.index(name) for name in classes], dtype=np.int64)[numbers]
    return ImageSet(np.concatenate(parts), asked, train.classes if asked is not None else (), "samples", "test")


@contextmanager
def _counted(generator: Samples) -> Iterator[list[int]]:
    """How many images each evaluation of ``generator.denoiser`` was of, where there is such a network."""
    passed: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            passed.append(len(output))

    network = getattr(generator, "denoiser", None)
    hook = network.register_forward_hook(count) if isinstance(network, nn.Module) else None
    try:
        yield passed
    finally:
        if hook is not None:
            hook.remove()


class _Work:
    """Adds up units of work for a progress callback."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, units: int) -> None:
        self.done += units
        if self.progress is not None:
            self.progress(self.done, self.total)


def _identity(images: ImageSet) -> dict[str, Any]:
    return {"name": images.name, "split": images.split, "count": len(images), "fingerprint": images.fingerprint()}
