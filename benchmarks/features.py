"""The fixed eye of the comparison: one small classifier for all arms, and the training set as it sees it.

The features are those of ``sfumato.metrics``' classifier, trained once on Fashion-MNIST padded to 32x32 and kept in
the cache with a mark of its weights; results under another mark are never mixed. The reference is the whole training
set. Run alone, it prepares the classifier and prints how far the test set is from the training set, the floor of every
distance measured here:

    .venv/bin/python -m benchmarks.features --threads 2
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.trial import FASHION, runs_folder
from sfumato.core import checkpoint
from sfumato.data import ImageSet, load
from sfumato.metrics import classifier
from sfumato.metrics.distances import frechet_distance, moments

CHUNK = 500  # images at once


@lru_cache
def training_data(name: str = FASHION) -> ImageSet:
    """What every arm trains on, and what it is compared with: 60,000 images, 32x32, grey, 10 classes; or other data."""
    return load(name, size=32, fit="pad")


@lru_cache
def test_data(name: str = FASHION) -> ImageSet:
    """The images that no arm sees: 10,000 of Fashion-MNIST."""
    return load(name, split="test", size=32, fit="pad")


class Features:
    """The classifier, and mean and covariance of the training set's features; built on first use, then from the cache."""

    def __init__(self) -> None:
        data = training_data()
        source = hashlib.sha256(inspect.getsource(classifier).encode()).hexdigest()[:8]
        file = runs_folder(None) / f"features-{data.fingerprint()}-{source}.safetensors"
        self.model = classifier.SmallClassifier(data.channels, len(data.classes)).eval().requires_grad_(False)
        if not file.exists():
            self._build(data, file)
        tensors, self.identity = checkpoint.read(file)
        self.reference = tensors.pop("mean"), tensors.pop("covariance")
        self.model.load_state_dict(tensors)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _build(self, data: ImageSet, file: Path) -> None:
        print("training the classifier whose features are compared (once, a minute or so)", flush=True)
        self.model = classifier.train_classifier(data)
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

    def measure(self, pixels: Tensor) -> dict[str, float]:
        """Frechet distance to the training set, and how often the class is seen that was asked for (each in turn)."""
        found = self.features(pixels)
        with torch.no_grad():
            seen = self.model.head(found).argmax(1)
        asked = torch.arange(len(pixels)) % len(training_data().classes)
        return {
            "distance": round(frechet_distance(found, self.reference), 4),
            "accuracy": round(float((seen == asked).float().mean()), 4),
        }


def floor(features: Features, n: int = 2000) -> dict[str, Any]:
    """The distance of n test images from the training set, and the classifier's accuracy on them."""
    data = test_data()
    assert data.labels is not None
    found = features.features(data.pixels(slice(0, n)))
    with torch.no_grad():
        right = features.model.head(found).argmax(1) == torch.from_numpy(data.labels[:n].copy())
    return {"distance": frechet_distance(found, features.reference), "accuracy": float(right.float().mean()), "n": n}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="0: torch's choice")
    machine.set_threads(parser.parse_args().threads)
    features = Features()
    print(features.identity, floor(features))


if __name__ == "__main__":
    main()
