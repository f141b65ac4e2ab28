"""Training a contrastive image-text embedding on captioned images: CLIP's objective (Radford et al. 2021, figure 3)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.conditions.image import ImageTextModel
from sfumato.conditions.sources import draw_texts
from sfumato.conditions.text import MINILM, LatentStore, find_encoder
from sfumato.core.devices import autocast_type, find_device
from sfumato.core.errors import InputError
from sfumato.core.streams import mix_seed
from sfumato.data import ImageSet
from sfumato.engine import Budget, Moment, Objective, Progress, decay_groups, train_steps
from sfumato.engine.schedule import cosine

BATCH = 256  # the other images of a batch are an image's negatives: the more, the better
RATE = 2e-3
WEIGHT_DECAY = 0.1
WARMUP = 0.05  # share of the budget
TURN = 0.12  # radians at most, each way
ZOOM = 0.12  # of the logarithm of the size
SHIFT = 0.08  # of half the side
COLOUR = (0.15, 0.1, 0.05)  # saturation, contrast, brightness: red stays red, and dark stays dark

Features = Callable[[np.ndarray, torch.Generator], Tensor]  # (B,) numbers of images -> (B, encoder.features)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor | float, same: Tensor | None = None) -> Tensor:
    """CLIP's symmetric loss: each image must find its text among the batch's, and each text its image.

    ``-1/2B sum_i [log softmax_j(s <u_i, v_j>)_i + log softmax_j(s <u_j, v_i>)_i]``.

    Args:
        images, texts: u and v, (B, D) of unit length; row i of one belongs to row i of the other.
        scale: s, the inverse temperature.
        same: (B, B) bool, [i, j] is True where text j is true of image i as well: such a pair is no negative, and
            stands in no denominator but its own.

    Returns:
        A scalar.
    """
    logits = scale * images @ texts.T  # (B, B)
    right = torch.arange(len(logits), device=logits.device)
    if same is not None:
        own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same.to(logits.device) & ~own, float("-inf"))
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


class Truth:
    """Which texts are true of which images: all captions of an image, for it and for those that equal it to the pixel."""

    def __init__(self, data: ImageSet) -> None:
        captions = captions_of(data)
        numbers: dict[bytes, int] = {}
        digests = (hashlib.sha256(image.tobytes()).digest() for image in data.images)
        self.pictures = np.array([numbers.setdefault(digest, len(numbers)) for digest in digests])  # (N,)
        holders: dict[str, set[int]] = {}
        for picture, texts in zip(self.pictures.tolist(), captions, strict=True):
            for text in texts:
                holders.setdefault(text, set()).add(picture)
        self._holders = {text: np.array(sorted(found)) for text, found in holders.items()}

    def same(self, index: np.ndarray, texts: Sequence[str]) -> Tensor:
        """(B, T) bool: whether each text is true of each of the images ``index`` (B,)."""
        pictures = self.pictures[index]
        columns = [np.isin(pictures, self._holders.get(text, ())) for text in texts]
        return torch.from_numpy(np.stack(columns, axis=1))


def captions_of(data: ImageSet) -> tuple[tuple[str, ...], ...]:
    """The captions; InputError where there are none."""
    if data.captions is None:
        raise InputError(
            f"{data.name} has no captions, and images and texts are needed: give a folder with a metadata.jsonl "
            "(file_name, text), or a .txt file beside each image"
        )
    return data.captions


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) in [0, 1], each a little turned, zoomed, moved and differently lit: captions stay true."""

    def draw(*shape: int) -> Tensor:
        return (2 * torch.rand(*shape, generator=generator) - 1).to(x.device)  # in [-1, 1]

    count = len(x)
    angle, zoom, shift = TURN * draw(count), (ZOOM * draw(count)).exp(), SHIFT * draw(count, 2)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(count, 2, 3)
    places = F.affine_grid(rows, list(x.shape), align_corners=False)
    x = F.grid_sample(x, places, padding_mode="border", align_corners=False)
    saturation, contrast, brightness = (size * draw(count, 1, 1, 1) for size in COLOUR)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (1 + saturation)
    return (0.5 + (x - 0.5) * (1 + contrast) + brightness).clamp(0, 1)


class ContrastiveObjective(Objective):
    """The contrastive loss of an ImageTextModel.

    Args:
        model: on the device where it is to be trained.
        data: with captions.
        store: the latents of all of them.
        features: what the encoder makes of images; None augments and encodes them anew each time.
    """

    clip = 1.0
    advice = "look at the images, or start again with another --seed"

    def __init__(
        self, model: ImageTextModel, data: ImageSet, store: LatentStore, features: Features | None = None
    ) -> None:
        self.model, self.data, self.store = model, data, store
        self.captions, self.truth = captions_of(data), Truth(data)
        self.features = features or self._encoded
        count = min(BATCH, len(data))
        if count < 2:
            raise InputError(f"{data.name} has {count} image: telling images apart by texts needs 2 or more")
        groups = decay_groups(model.parameters(), WEIGHT_DECAY)
        super().__init__(model, [torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99))], count)

    def _encoded(self, index: np.ndarray, generator: torch.Generator) -> Tensor:
        return self.model.encoder(augment(self.data.pixels(index).to(self.model.device), generator))

    def learning_rate(self, moment: Moment) -> float:
        return cosine(RATE, moment.fraction, rise=WARMUP)

    def losses(self, moment: Moment) -> Iterator[Tensor]:
        generator = moment.generator()
        index = torch.randperm(len(self.data), generator=generator)[: self.images_per_step].numpy()
        texts = draw_texts(self.captions, index, generator)
        number = autocast_type(self.model.device)
        with torch.autocast(self.model.device.type, number, enabled=number is not None):
            images = self.model.of_features(self.features(index, generator))
            latents = self.model.of_latents(self.store[texts])
        yield contrastive_loss(images, latents, self.model.scale, self.truth.same(index, texts))

    def save(self, out: Path) -> None:
        self.model.save(out)


def new_model(data: ImageSet, text: str, seed: int, device: torch.device, **how: Any) -> ImageTextModel:
    """An untrained ImageTextModel for these images; ``how``: its width, encoder and dropout."""
    reader = find_encoder(text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(seed, 0))
        model = ImageTextModel(data.channels, text, reader.width, **how)
    return model.to(device)


def contrastive_steps(
    data: ImageSet, out: str | Path, budget: Budget, *, text: str = MINILM, device: str = "auto", seed: int = 0
) -> Iterator[Progress]:
    """Train an image-text embedding step by step; the same call resumes from the folder ``out``.

    Args:
        data: captioned images; each time one of an image's captions is drawn.
        out: the folder, which gets ``model.safetensors`` and ``config.json``, see ``conditions.image``.
        budget: in minutes, images or steps.
        text: the frozen language model, see ``conditions.text.find_encoder``.
        device: auto, cpu or cuda.
        seed: of the weights and of everything random in training.

    Raises:
        InputError: images without captions, or a folder that holds another run.
    """
    captions = captions_of(data)
    model = new_model(data, text, seed, find_device(device))
    store = LatentStore([one for texts in captions for one in texts], model.reader)
    identity = {
        "data": f"{data.name} ({len(data)} images, {data.fingerprint()})",
        "text": f"{text} ({model.reader.fingerprint})",
        "seed": seed,
    }
    objective = ContrastiveObjective(model, data, store)
    return train_steps(objective, budget, seed=seed, out=Path(out), identity=identity)
