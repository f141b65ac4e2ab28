"""R-precision: is a generated image nearer to its own caption than to 99 others? (Xu et al. 2018; Park et al. 2021)

The judge is an image-text embedding trained on real training images alone, never on what a generator drew, so no
generator is trained towards it. Its own number on real images stands beside the generator's, for it limits what can be
reached: on captions that nobody was trained on, no judge is perfect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.classifiers import effnet
from sfumato.conditions.image import ImageTextModel, TransformersClip, find_image_text
from sfumato.conditions.text import MINILM, find_encoder
from sfumato.core.checkpoint import digest
from sfumato.metrics.features import FEATURES, FeatureSpace, cached_tensors, reference_features, reference_rows, subset
from sfumato.training import contrastive

if TYPE_CHECKING:
    from sfumato.data import ImageSet

CANDIDATES = 100  # captions to choose from, the right one included
VIEWS = 2  # augmented images of each, beside the image as it is, where the encoder is frozen and each costs much
_EPOCHS, _LEAST, _MOST = 60, 100, 3000  # of the judge's training: passes, and steps at least and at most
_LIMIT = 5_000  # images that the judge is trained on at most
_Z = 1.959964  # of a 95% interval


@dataclass(frozen=True)
class Judge:
    """How like each other images and texts are.

    Args:
        name: for people.
        digest: 16 hex digits of its weights; numbers compare only where they are the same.
        space: features of images, (N, space.dimension).
        head: those features to points of the unit sphere, (N, D).
        texts: texts to points of the same sphere, (N, D).
    """

    name: str
    digest: str
    space: FeatureSpace
    head: Callable[[Tensor], Tensor]
    texts: Callable[[Sequence[str]], Tensor]

    @torch.no_grad()
    def images(self, features: Tensor) -> Tensor:
        """(N, space.dimension) features to (N, D)."""
        return self.head(features.to(self.space.device)).cpu()


def r_precision(
    images: Tensor,
    texts: Tensor,
    own: np.ndarray,
    *,
    alike: Sequence[set[int]] | None = None,
    candidates: int = CANDIDATES,
    seed: int = 0,
) -> np.ndarray:
    """Whether each image's own text is the most similar one among ``candidates``, the others drawn at random.

    Args:
        images: (N, D); similarities are products with texts (T, D), so both are of unit length as a rule.
        texts: all captions, each once.
        own: (N,) the row of each image's caption.
        alike: for each text the rows that are never drawn against it: captions of the very same picture.
        candidates: 2 or more; all texts that there are, where those are fewer.
        seed: of the draw.

    Returns:
        (N,) bool; of a judge that knows nothing, one in ``candidates`` is True.
    """
    numbers = np.random.default_rng(seed)
    similar = (images.double() @ texts.double().T).numpy()  # (N, T)
    right = np.zeros(len(images), dtype=bool)
    for i, mine in enumerate(own.tolist()):
        barred = {mine} | (alike[mine] if alike is not None else set())
        drawn = numbers.permutation(len(texts))[: candidates - 1 + len(barred)]
        others = [row for row in drawn.tolist() if row not in barred][: candidates - 1]
        right[i] = bool(others) and bool(similar[i, mine] > similar[i, others].max())
    return right


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share seen in ``count`` independent trials (Wilson 1927)."""
    middle = share + _Z**2 / (2 * count)
    reach = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    low, high = ((middle + sign * reach) / (1 + _Z**2 / count) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


class Captions:
    """The captions of two splits as one list of distinct texts, and which of them are of one picture."""

    def __init__(self, *sets: ImageSet) -> None:
        held: dict[bytes, set[int]] = {}
        self.rows: dict[str, int] = {}
        for images in sets:
            for picture, texts in zip(images.images, contrastive.captions_of(images), strict=True):
                row = self.rows.setdefault(texts[0], len(self.rows))
                held.setdefault(picture.tobytes(), set()).add(row)
        self.texts = list(self.rows)
        self.alike: list[set[int]] = [set() for _ in self.texts]
        for rows in held.values():
            for row in rows:
                self.alike[row] |= rows

    def of(self, asked: Sequence[str]) -> np.ndarray:
        """The rows of some captions."""
        return np.array([self.rows[text] for text in asked])


class Retrieval:
    """The measure for one data set: captions of both splits are the candidates, whichever split an image is of.

    Args:
        judge: see ``find_judge``.
        train, test: captioned; the first caption of an image is the one that counts.
        seed: of the candidates.
    """

    def __init__(self, judge: Judge, train: ImageSet, test: ImageSet, seed: int = 0) -> None:
        self.judge, self.seed = judge, seed
        self.captions = Captions(train, test)
        self.points = judge.texts(self.captions.texts)
        self.candidates = min(CANDIDATES, len(self.captions.texts))

    def __call__(self, features: Tensor, asked: Sequence[str]) -> dict[str, Any]:
        """R-precision of images, given as features in the judge's space (N, D), that were asked for with these captions.

        The interval counts captions, not images: those of one caption succeed or fail together.
        """
        how = {"alike": self.captions.alike, "candidates": self.candidates, "seed": self.seed}
        found = r_precision(self.judge.images(features), self.points, self.captions.of(asked), **how)
        share, captions = float(found.mean()), len(set(asked))
        low, high = wilson(share, captions)
        return {"images": len(asked), "captions": captions, "r_precision": share, "low": low, "high": high}

    def of_real(self, images: ImageSet) -> dict[str, Any]:
        """The same for real images: what the judge can do at all."""
        rows = reference_rows(len(images), self.judge.space.limit)
        captions = contrastive.captions_of(images)
        return self(reference_features(self.judge.space, images), [captions[row][0] for row in rows])

    def describe(self) -> dict[str, Any]:
        judge = {"judge": self.judge.name, "space": self.judge.space.name, "hash": self.judge.digest}
        return {**judge, "candidates": self.candidates, "chance": 1 / self.candidates}


def own_image(features: Tensor, asked: Sequence[str], reference: Tensor, train: ImageSet) -> float:
    """The share of images whose nearest training image is the very one whose caption was asked for.

    Args:
        features: (N, D), of images asked for with the captions ``asked``.
        reference: (len(train), D), of all training images in the same space.
    """
    captions = Captions(train)
    found = torch.cdist(features.double(), reference.double()).argmin(1).tolist()
    texts = contrastive.captions_of(train)
    pairs = zip(captions.of([texts[i][0] for i in found]), captions.of(asked), strict=True)
    return float(np.mean([there in captions.alike[wanted] for there, wanted in pairs]))


# -- judges -----------------------------------------------------------------------------------------------------------


def find_judge(train: ImageSet, device: torch.device, name: str | None = None, text: str = MINILM) -> Judge:
    """The judge of a captioned data set.

    Args:
        train: the training images; the judge is trained on them once, and kept in the cache.
        name: a CLIP of transformers (folder or ``owner/name``), or a folder with a saved embedding, instead.
        text: the frozen language model under a judge that is trained here.

    Without a name: two linear layers over frozen features, EfficientNet-Lite0's of the images and the language model's
    of the texts; where EfficientNet-Lite0 is not installed, a small convolutional encoder trained with them.
    """
    if name is not None:
        found = find_image_text(name, str(device))
        weights = digest(found.model if isinstance(found, TransformersClip) else found)
        space = FeatureSpace(f"image-text {name}", weights, found.width, found.images, device, _LIMIT)
        return Judge(name, weights, space, lambda features: features, found.texts)
    if effnet.installed():
        space = FEATURES["effnet-lite0"](train, device)
        model = _trained(train, device, text, space)
        name = f"effnet-lite0 and {text}, trained on {train.name}"
        return Judge(name, digest(model), space, model.of_features, model.texts)
    space, model = _convolutional(train, device, text)
    name = f"convolutions and {text}, trained on {train.name}"
    return Judge(name, digest(model), space, lambda x: F.normalize(x, dim=1), model.texts)


@FEATURES.add("image-text")
def image_text_space(train: ImageSet, device: torch.device) -> FeatureSpace:
    """128 features of a small image-text embedding that is trained on ``train`` and its captions once, and kept."""
    return _convolutional(train, device, MINILM)[0]


def _convolutional(train: ImageSet, device: torch.device, text: str) -> tuple[FeatureSpace, ImageTextModel]:
    model = _trained(train, device, text, None)

    def features(pixels: Tensor) -> Tensor:
        return model.image_head(model.encoder(pixels))

    return FeatureSpace("image-text", digest(model), model.width, features, device, 100_000), model


class _Given(nn.Module):
    """In the place of an encoder whose features are computed elsewhere."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features


def _trained(train: ImageSet, device: torch.device, text: str, space: FeatureSpace | None) -> ImageTextModel:
    """The embedding from the cache, or trained now: over the features of ``space``, or else with an encoder of its own."""
    from sfumato.conditions.text import LatentStore
    from sfumato.engine import Budget, train_steps

    images = subset(train, reference_rows(len(train), _LIMIT))
    captions = contrastive.captions_of(images)
    build = {} if space is None else {"encoder": _Given(space.dimension), "dropout": (0.5, 0.3)}
    model = contrastive.new_model(images, text, 0, device, **build)
    description = {"space": "judge", "version": 1, "data": train.fingerprint(), "device": device.type}
    encoder = "convolutions" if space is None else space.digest
    description |= {"text": find_encoder(text).fingerprint, "encoder": encoder}

    def train_it() -> dict[str, Tensor]:
        store = LatentStore([one for texts in captions for one in texts], model.reader)
        features = None if space is None else _views(images, space)
        objective = contrastive.ContrastiveObjective(model, images, store, features)
        steps = min(max(_EPOCHS * len(images) // objective.images_per_step, _LEAST), _MOST)
        for _ in train_steps(objective, Budget(steps=steps)):
            pass
        return model.saved_tensors()

    model.load_state_dict(cached_tensors(description, train_it))
    return model.eval().requires_grad_(False)


def _views(images: ImageSet, space: FeatureSpace) -> contrastive.Features:
    """Features of each image as it is and augmented, computed once; each time one of them is drawn."""
    views = [reference_features(space, images)]
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(VIEWS):
            batches = (images.pixels(slice(i, i + 64)).to(space.device) for i in range(0, len(images), 64))
            augmented = (contrastive.augment(pixels, stream) for pixels in batches)
            views.append(torch.cat([space.features(pixels).float().cpu() for pixels in augmented]))
    table = torch.stack(views)  # (V, N, F)

    def drawn(index: np.ndarray, generator: torch.Generator) -> Tensor:
        view = torch.randint(len(table), (len(index),), generator=generator)
        return table[view, torch.from_numpy(index)].to(space.device)

    return drawn
