"""Training the diffusion prior of DALL-E 2 on pairs of image embeddings and texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.conditions.image import ImageTextModel, TransformersClip
from sfumato.conditions.sources import draw_texts
from sfumato.conditions.text import LatentStore, TextEncoder
from sfumato.core.devices import find_device
from sfumato.core.streams import mix_seed
from sfumato.data import ImageSet
from sfumato.engine import Budget, Moment, Objective, Progress, decay_groups, train_steps
from sfumato.engine.schedule import cosine
from sfumato.recipes.prior import Prior
from sfumato.training.contrastive import captions_of

DROP = 0.1  # of texts in training
LEVELS = (-0.5, 1.2)  # mean and deviation of the logarithm of the noise level in training (EDM's, for unit deviation)
BATCH = 256
RATE, WEIGHT_DECAY, WARMUP = 1e-3, 0.03, 0.05


@dataclass(frozen=True)
class Pairs:
    """What a prior is trained on.

    Attributes:
        data: captioned images.
        images: (N, D), the embeddings of its images.
        embedding: of the texts.
        reader: the frozen language model, whose vector is a condition too.
    """

    data: ImageSet
    images: Tensor
    embedding: ImageTextModel | TransformersClip
    reader: TextEncoder


class PriorObjective(Objective):
    """The denoising loss of a Prior; each time one of an image's captions is drawn.

    ``E (s^2 + 1)/s^2 |D(z, s, text) - x|^2``, of which a mean over numbers: unit weight on the network's output.
    """

    clip = 1.0
    advice = "look at the images, or start again with another --seed"

    def __init__(self, prior: Prior, pairs: Pairs) -> None:
        self.prior, self.captions = prior, captions_of(pairs.data)
        texts = sorted({text for captions in self.captions for text in captions})
        self.store = LatentStore(texts, pairs.reader)
        embedding = pairs.embedding
        if isinstance(embedding, ImageTextModel) and embedding.reader is pairs.reader:
            starts = range(0, len(texts), BATCH)
            rows = [embedding.of_latents(self.store[texts[i : i + BATCH]]).detach().cpu() for i in starts]
            points = torch.cat(rows)
        else:
            points = embedding.texts(texts)
        self.texts = dict(zip(texts, points, strict=True))
        images = pairs.images
        with torch.no_grad():
            prior.mean.copy_(images.mean(0))
            prior.deviation.copy_((images - images.mean(0)).square().mean().sqrt().clamp_min(1e-4))
            usual = torch.stack([self.texts[captions[0]] for captions in self.captions]).mean(0)
            prior.usual_text.copy_(F.normalize(usual, dim=0))
        self.clean = prior.normalised(images.to(prior.device))
        optimizer = torch.optim.AdamW(decay_groups(prior.parameters(), WEIGHT_DECAY), lr=RATE, betas=(0.9, 0.99))
        super().__init__(prior, [optimizer], BATCH)

    def learning_rate(self, moment: Moment) -> float:
        return cosine(RATE, moment.fraction, rise=WARMUP)

    def losses(self, moment: Moment) -> Iterator[Tensor]:
        generator, device = moment.generator(), self.prior.device
        index = torch.randint(len(self.clean), (BATCH,), generator=generator)
        asked = draw_texts(self.captions, index.numpy(), generator)
        latents = self.store[asked]
        text = torch.stack([self.texts[one] for one in asked]).to(device)
        present = (torch.rand(BATCH, generator=generator) >= DROP).to(device)
        sigma = (LEVELS[0] + LEVELS[1] * torch.randn(BATCH, generator=generator)).exp().to(device)
        x = self.clean[index.to(device)]
        noise = torch.randn(x.shape, generator=generator).to(device)
        x_hat = self.prior(x + sigma[:, None] * noise, sigma, text, latents.vector.to(device), present)
        weight = 1 + 1 / sigma[:, None] ** 2
        yield (weight * (x_hat - x).square()).mean()

    def save(self, out: Path) -> None:
        self.prior.save(out)


def prior_steps(
    pairs: Pairs, out: Path, budget: Budget, *, identity: dict[str, Any], device: str, seed: int
) -> Iterator[Progress]:
    """Train a prior step by step; the same call resumes from the folder ``out``.

    Args:
        pairs: what to train on.
        identity: what must be the same for a run to be resumed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(seed, 0))
        prior = Prior(pairs.images.shape[1], pairs.reader.width).to(find_device(device))
    return train_steps(PriorObjective(prior, pairs), budget, seed=seed, out=out, identity=identity)
