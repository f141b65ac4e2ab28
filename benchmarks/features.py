"""The fixed eye of the comparisons: one small classifier for all arms, and the training set as it sees it.

The features are those of ``sfumato.metrics``' classifier, trained once on Fashion-MNIST padded to 32x32 and kept in
the cache with a mark of its weights; results under another mark are never mixed. The reference is the whole training
set. ``floor`` is how far the test set is from the training set.
"""

from __future__ import annotations

import hashlib
import inspect
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.base.trial import FASHION, runs_folder
from sfumato.core import checkpoint
from sfumato.core.pictures import to_bytes
from sfumato.data import ImageSet, load
from sfumato.metrics import Retrieval, classifier, find_judge, reference_features
from sfumato.metrics.distances import frechet_distance, moments
from sfumato.training.contrastive import captions_of

CHUNK = 500  # images at once


@lru_cache
def images(name: str = FASHION, split: str = "train") -> ImageSet:
    """What every arm trains on: 60,000 images, 32x32, grey, 10 classes; or the test images, that no arm sees."""
    return load(name, split=split, size=32, fit="pad")


class Features:
    """The classifier, and mean and covariance of the training set's features; built on first use, then from the cache."""

    def __init__(self, name: str = FASHION) -> None:
        self.data, self.name = images(name), name
        source = hashlib.sha256(inspect.getsource(classifier).encode()).hexdigest()[:8]
        file = runs_folder() / f"features-{self.data.fingerprint()}-{source}.safetensors"
        self.model = classifier.SmallClassifier(self.data.channels, len(self.data.classes)).eval().requires_grad_(False)
        if not file.exists():
            self._build(file)
        tensors, self.identity = checkpoint.read(file)
        self.reference = tensors.pop("mean"), tensors.pop("covariance")
        self.model.load_state_dict(tensors)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _build(self, file: Path) -> None:
        print("training the classifier whose features are compared (once, a minute or so)", flush=True)
        self.model, data = classifier.train_classifier(self.data), self.data
        parts = [self.features(data.pixels(slice(i, i + CHUNK))) for i in range(0, len(data), CHUNK)]
        mean, covariance = moments(torch.cat(parts))
        state = self.model.state_dict()
        digest = hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in state.values()))
        identity = {"features": f"classifier-{digest.hexdigest()[:8]}", "reference": data.fingerprint()}
        checkpoint.write_tensors(file, {**state, "mean": mean, "covariance": covariance}, identity)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """(N, 1, 32, 32) in [0, 1] -> (N, 128)."""
        return torch.cat([self.model.features(part) for part in pixels.split(CHUNK)])

    @torch.no_grad()
    def measure(self, pixels: Tensor) -> dict[str, float]:
        """Fréchet distance to the training set, and how often the requested class is seen (each in turn)."""
        found = self.features(pixels)
        right = self.model.head(found).argmax(1) == torch.arange(len(pixels)) % len(self.data.classes)
        distance = round(frechet_distance(found, self.reference), 4)
        return {"distance": distance, "accuracy": round(float(right.float().mean()), 4)}

    def floor(self, n: int) -> float:
        """The distance of n test images from the training set."""
        test = images(self.name, "test").pixels(slice(0, n))
        return round(frechet_distance(self.features(test), self.reference), 4)


class Judge:
    """What text-to-image models are measured with: captions, the scorer of captions, its space, the training images in it."""

    def __init__(self, train: ImageSet, test: ImageSet) -> None:
        self.known = [texts[0] for texts in captions_of(train)]
        self.new = [texts[0] for texts in captions_of(test) if texts[0] not in set(self.known)]
        self.retrieval = Retrieval(find_judge(train, torch.device("cpu")), train, test)
        self.space = self.retrieval.judge.space
        self.reference = reference_features(self.space, train)
        self.real = {each.split: self.retrieval.of_real(each)["r_precision"] for each in (train, test)}

    def features(self, pixels: Tensor) -> Tensor:
        """Those of (N, C, H, W) pictures in [0, 1], rounded to 8 bits as if saved."""
        return self.space.of(ImageSet(to_bytes(pixels), None, (), "samples", "test"))
