"""Images of a generator in the mix of hardening: drawn once, kept on disk, balanced, and filtered by a classifier.

After Gowal et al. 2021 (arXiv 2110.09468) and Wang et al. 2023 (arXiv 2302.04638): a conditional generator, and of what
it draws the images that a classifier surely takes for what they were to be.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sfumato.core import checkpoint
from sfumato.core.errors import InputError
from sfumato.core.streams import mix_seed
from sfumato.defences.compatibility import check_compatible

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier
    from sfumato.data import ImageSet
    from sfumato.generator import Generator

FILE = "generated.safetensors"
SHARE = 0.3  # of each batch
TIME_SHARE = 0.2  # of a budget in minutes, that drawing may take
MOST_KEPT = 0.8  # of each class, the surest
MOST_OFTEN = 4  # times as often as an image of the data, that a generated one is seen
CHUNK = 200  # images drawn at once
SAVE_SECONDS = 15.0


class Pool(NamedTuple):
    """Images to mix into training.

    Attributes:
        images: (N, C, H, W) uint8, as many of each class.
        labels: (N,) as the classifier numbers them.
        drawn, agreed: how many were drawn, and how many of these the classifier took for what they were to be.
        seconds: that drawing took.
    """

    images: Tensor
    labels: Tensor
    drawn: int
    agreed: int
    seconds: float

    def take(self, count: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Some of them at random: (count, C, H, W) in [0, 1], and their labels."""
        rows = torch.randint(len(self.images), (count,), generator=stream)
        return self.images[rows].float().div_(255), self.labels[rows]

    def counts(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "agreed": self.agreed, "kept": len(self.images), "seconds": round(self.seconds, 1)}


def check_generator(generator: Generator, classifier: Classifier, data: ImageSet) -> None:
    """InputError where its images cannot be mixed with the data: another size, colour, or not the same classes."""
    if not generator.classes:
        problem = "the generator was trained without labels, and its images could teach no class"
        raise InputError(f"{problem}: give one that was trained on labelled images")
    check_compatible(classifier, generator)
    channels = generator.ladder.channels
    if channels != data.channels:
        problem = f"the generator makes images of {channels} channels, data {data.name!r} has {data.channels}"
        raise InputError(f"{problem}: give a generator that was trained on this data")


def draw_pool(
    generator: Generator,
    classifier: Classifier,
    file: Path,
    identity: dict[str, Any],
    most: int,
    seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pool:
    """Draw images of each class in turn, or take those that ``file`` holds, and filter them.

    The file is written on the way, so that drawing goes on after it was stopped. Image i of chunk j depends on the seed,
    i and j alone.

    Args:
        generator, classifier: that fit each other (``check_generator``).
        file: where they are kept.
        identity: of generator and classifier, and ``seed``, that of the images; a file of another is refused.
        most: how many to draw.
        seconds: draw fewer where so many would take longer than this, by the speed of the first chunk.
        progress: called with (images drawn, images in all).

    Raises:
        InputError: a file of something else, or too few images that the classifier takes for what they were to be.
    """
    numbers: dict[str, Any] = {"wanted": most, "seconds": 0.0, "timed": seconds is None}
    parts: list[Tensor] = []
    if file.exists():
        tensors, stored = checkpoint.read(file)
        if stored.get("identity") != identity:
            raise InputError(f"{file} holds images of another generator, classifier or seed: give another --out")
        numbers, parts = stored["numbers"], [tensors["images"].clone()]
    drawn, saved = sum(map(len, parts)), time.perf_counter()
    classes = classifier.labels if classifier.named else generator.classes
    if progress is not None and drawn < numbers["wanted"]:
        progress(drawn, numbers["wanted"])
    while drawn < numbers["wanted"]:
        began = time.perf_counter()
        count = min(CHUNK, numbers["wanted"] - drawn)
        names = [classes[(drawn + i) % len(classes)] for i in range(count)]
        made = generator.sample(count, names, seed=mix_seed(identity["seed"], drawn))
        parts.append((255 * made).round().to(torch.uint8))
        drawn += count
        now = time.perf_counter()
        numbers["seconds"] += now - began
        if not numbers["timed"] and seconds is not None:
            affordable = int(seconds * drawn / numbers["seconds"]) // len(classes) * len(classes)
            numbers |= {"timed": True, "wanted": max(drawn, min(numbers["wanted"], affordable))}
        if now - saved >= SAVE_SECONDS or drawn >= numbers["wanted"]:
            parts = [torch.cat(parts)]
            checkpoint.write_tensors(file, {"images": parts[0]}, {"identity": identity, "numbers": numbers})
            saved = time.perf_counter()
        if progress is not None:
            progress(drawn, numbers["wanted"])
    images = torch.cat(parts)
    try:
        rows, labels, agreed = surest(classifier, images, torch.arange(len(images)) % len(classes))
    except InputError:  # another generator or classifier is needed, and could not go on from this file
        file.unlink(missing_ok=True)
        with suppress(OSError):
            file.parent.rmdir()
        raise
    return Pool(images[rows], labels, len(images), agreed, float(numbers["seconds"]))


def affordable(share: float, generated: int, data: int) -> float:
    """The share of a batch for so many generated images: as asked, less where it would repeat them too often.

    They are seen ``share / generated`` times for ``(1 - share) / data`` of the data, and that at most ``MOST_OFTEN`` fold.
    """
    return min(share, MOST_OFTEN * generated / (data + MOST_OFTEN * generated))


def surest(classifier: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """Of each class as many of the images that the classifier takes for their label: the surest, at most ``MOST_KEPT``.

    Args:
        classifier: that judges.
        images: (N, C, H, W) uint8.
        labels: (N,) that each was to be.

    Returns:
        The rows of those that are kept, their labels, and how many there were that the classifier agreed on.
    """
    parts = [classifier.logits(part.float().div_(255)) for part in images.split(classifier.batch_size)]
    confidence, predicted = torch.cat(parts).softmax(1).max(1)  # (N,)
    right = predicted == labels
    numbers = labels.unique().tolist()
    most = min(min(int((right & (labels == k)).sum()), round(MOST_KEPT * int((labels == k).sum()))) for k in numbers)
    if most == 0:
        missing = next(k for k in numbers if not bool((right & (labels == k)).any()))
        problem = f"of what the generator draws as {classifier.labels[missing]!r} the classifier takes nothing for it"
        advice = "give a generator and a classifier that were trained for longer, on the same images"
        raise InputError(f"{problem}: {advice}")
    found = []
    for k in numbers:
        mine = torch.nonzero(right & (labels == k)).flatten()
        found.append(mine[confidence[mine].argsort(descending=True, stable=True)[:most]])
    rows = torch.cat(found).sort().values
    return rows, labels[rows], int(right.sum())
