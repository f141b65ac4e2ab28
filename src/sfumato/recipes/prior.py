"""The diffusion prior of DALL-E 2: from what a text says to the embedding of an image of it (Ramesh et al. 2022, 2.2).

A small network on vectors in place of the paper's transformer on sequences; as there it predicts the clean embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.conditions.image import ImageTextModel, TransformersClip
from sfumato.conditions.sources import draw_texts
from sfumato.conditions.text import LatentStore, TextEncoder
from sfumato.core import checkpoint
from sfumato.core.devices import find_device
from sfumato.core.errors import InputError
from sfumato.core.streams import mix_seed
from sfumato.data import ImageSet
from sfumato.engine.budget import Budget
from sfumato.training.contrastive import captions_of
from sfumato.training.loop import Progress
from sfumato.training.small import SmallRun, small_steps

FORMAT = 1
HIDDEN, BLOCKS = 384, 4
HIGHEST, LOWEST = 20.0, 0.02  # noise levels of sampling, where the data's standard deviation is 1
STEPS = 16
CANDIDATES = 2  # embeddings drawn for each text, of which the one more like it is kept (section 2.2)
GUIDANCE = 2.0  # of emoji: nearer to the true embeddings than 1 (cosine 0.47 to 0.6), also of held-out texts
DROP = 0.1  # of texts in training
LEVELS = (-0.5, 1.2)  # mean and deviation of the logarithm of the noise level in training (EDM's, for unit deviation)
BATCH = 256
RATE, WEIGHT_DECAY = 1e-3, 0.03

DenoiseVectors = Callable[[Tensor, float], Tensor]  # (B, D) noisy at a level -> (B, D) clean


def sample_vectors(denoise: DenoiseVectors, noise: Tensor, steps: int = STEPS) -> Tensor:
    """From noise (B, D) of unit size to samples: Heun's method on ``dz/ds = (z - x^)/s`` (EDM, algorithm 1).

    The levels are EDM's, with rho = 7, from ``HIGHEST`` to ``LOWEST``, and then 0.
    """
    ends = HIGHEST ** (1 / 7), LOWEST ** (1 / 7)
    ramp = [(ends[0] + i / max(steps - 1, 1) * (ends[1] - ends[0])) ** 7 for i in range(steps)]
    z = HIGHEST * noise
    for sigma, lower in zip(ramp, [*ramp[1:], 0.0], strict=True):
        slope = (z - denoise(z, sigma)) / sigma
        guess = z + (lower - sigma) * slope
        if lower:
            slope = (slope + (guess - denoise(guess, lower)) / lower) / 2
        z = z + (lower - sigma) * slope
    return z


class Prior(nn.Module):
    """``x^ = D(z, s, text)`` on image embeddings, brought to mean 0 and deviation 1, with EDM's preconditioning.

    Args:
        width: of the embeddings.
        text_width: of the language model's vectors, which are told beside the text's embedding.
        hidden, blocks: of the network.
    """

    def __init__(self, width: int, text_width: int, hidden: int = HIDDEN, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.width, self.text_width, self.hidden = width, text_width, hidden
        self.mean: Tensor
        self.deviation: Tensor
        self.usual_text: Tensor
        self.register_buffer("mean", torch.zeros(width))  # of the embeddings of training images
        self.register_buffer("deviation", torch.ones(()))
        self.register_buffer("usual_text", torch.zeros(width))  # the mean embedding of training texts, of unit length
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(64), 16)), persistent=False)
        self.seen = nn.Linear(width, hidden)
        self.told = nn.Linear(width + text_width, hidden)
        self.nothing = nn.Parameter(torch.zeros(hidden))  # what is told where the text is dropped
        self.level = nn.Linear(2 * 16, hidden)
        self.blocks = nn.ModuleList(_Block(hidden) for _ in range(blocks))
        self.out = nn.Linear(hidden, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def forward(self, z: Tensor, sigma: Tensor, text: Tensor, vector: Tensor, present: Tensor) -> Tensor:
        """The clean embedding, brought to mean 0 and deviation 1.

        Args:
            z: (B, width), noisy. sigma: (B,), its level.
            text: (B, width), the text's embedding. vector: (B, text_width), the language model's. present: (B,) bool.
        """
        s = sigma[:, None]
        total = (1 + s**2).sqrt()
        return z / total**2 + s / total * self.raw(z / total, sigma, text, vector, present)

    def raw(self, seen: Tensor, sigma: Tensor, text: Tensor, vector: Tensor, present: Tensor) -> Tensor:
        """The network's own output, for z of unit size."""
        told = torch.cat([_unit(text), _unit(vector)], dim=1)
        told = torch.where(present[:, None], self.told(told), self.nothing)
        angles = sigma.log()[:, None] / 4 * self.frequencies
        about = F.silu(told + self.level(torch.cat([angles.sin(), angles.cos()], dim=1)))
        hidden = self.seen(seen)
        for block in self.blocks:
            hidden = block(hidden, about)
        return self.out(F.layer_norm(hidden, hidden.shape[1:]))

    def normalised(self, embedding: Tensor) -> Tensor:
        return (embedding - self.mean) / self.deviation

    @torch.no_grad()
    def sample(
        self, text: Tensor, vector: Tensor, noise: Tensor, guidance: float = GUIDANCE, steps: int = STEPS
    ) -> Tensor:
        """Image embeddings for B texts: of several drawn for each, the one most like the text's own.

        Args:
            text, vector: as in ``forward``.
            noise: (B, candidates, width), standard normal.
            guidance: g of ``u + g (c - u)``; 1 is off.

        Returns:
            (B, width), of unit length.
        """
        count, candidates = noise.shape[:2]
        text, vector, noise = (part.to(self.device) for part in (text, vector, noise))
        told, known = (part.repeat_interleave(candidates, 0) for part in (text, vector))
        there = torch.ones(len(told), dtype=torch.bool, device=self.device)

        def denoise(z: Tensor, sigma: float) -> Tensor:
            s = torch.full((len(z),), sigma, device=self.device)
            x_hat = self(z, s, told, known, there)
            return x_hat if guidance == 1 else torch.lerp(self(z, s, told, known, ~there), x_hat, guidance)

        drawn = self.mean + self.deviation * sample_vectors(denoise, noise.flatten(0, 1), steps)
        drawn = F.normalize(drawn, dim=1).view(count, candidates, -1)
        best = (drawn @ text[:, :, None]).squeeze(2).argmax(1)  # (B,)
        return drawn[torch.arange(count, device=self.device), best]

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` into the folder ``path``."""
        description = {
            "kind": "prior", "format": FORMAT, "width": self.width, "text_width": self.text_width,
            "hidden": self.hidden, "blocks": len(self.blocks),
        }  # fmt: skip
        checkpoint.write(Path(path), self.state_dict(), description)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "auto") -> Prior:
        """Load what ``save`` wrote; InputError for anything else."""
        file = checkpoint.find(path)
        tensors, description = checkpoint.read(file)
        if description.get("kind") != "prior" or description.get("format") != FORMAT:
            raise InputError(f"{file} is no prior of this version of sfumato: train or copy it again")
        try:
            model = cls(*(description[key] for key in ("width", "text_width", "hidden", "blocks")))
            model.load_state_dict(tensors)
        except (KeyError, TypeError, RuntimeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{file} is damaged ({reason}): train or copy it again") from None
        return model.eval().requires_grad_(False).to(find_device(device))


class _Block(nn.Module):
    """x + two layers, whose normalised input is scaled and shifted by what is told, and whose output is scaled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.about = nn.Linear(width, 3 * width)
        self.inner = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, about: Tensor) -> Tensor:
        scale, shift, gate = self.about(about).chunk(3, dim=1)
        return x + gate * self.inner(F.layer_norm(x, x.shape[1:]) * (1 + scale) + shift)


def _unit(x: Tensor) -> Tensor:
    """Rows with a root mean square of 1."""
    return F.rms_norm(x, x.shape[1:])


# -- training -----------------------------------------------------------------------------------------------------------


class PriorRun(SmallRun):
    """One training of a Prior on N pairs of image embeddings (N, D) and texts; each time one of an image's captions."""

    def __init__(
        self, prior: Prior, images: Tensor, captions: tuple[tuple[str, ...], ...], texts: dict[str, Tensor],
        store: LatentStore, seed: int,
    ) -> None:  # fmt: skip
        self.prior, self.captions, self.texts, self.store = prior, captions, texts, store
        with torch.no_grad():
            prior.mean.copy_(images.mean(0))
            prior.deviation.copy_((images - images.mean(0)).square().mean().sqrt().clamp_min(1e-4))
            usual = torch.stack([texts[found[0]] for found in captions]).mean(0)
            prior.usual_text.copy_(F.normalize(usual, dim=0))
        self.clean = prior.normalised(images.to(prior.device))
        super().__init__(prior, self._loss, batch=BATCH, rate=RATE, weight_decay=WEIGHT_DECAY, seed=seed)

    def _loss(self, generator: torch.Generator) -> Tensor:
        """``E (s^2 + 1)/s^2 |D(z, s, text) - x|^2``, of which a mean over numbers: unit weight on the network's output."""
        device = self.prior.device
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
        return (weight * (x_hat - x).square()).mean()


def prior_steps(
    data: ImageSet,
    images: Tensor,
    embedding: ImageTextModel | TransformersClip,
    reader: TextEncoder,
    out: Path,
    budget: Budget,
    *,
    identity: dict[str, Any],
    device: str,
    seed: int,
) -> Iterator[Progress]:
    """Train a prior step by step; the same call goes on where the folder ``out`` stands.

    Args:
        data: captioned.
        images: (N, D), the embeddings of its images.
        embedding: of the texts.
        reader: the frozen language model, whose vector is told too.
        identity: what must be the same for a run to go on.
    """
    captions = captions_of(data)
    every = sorted({text for texts in captions for text in texts})
    store = LatentStore(every, reader)
    if isinstance(embedding, ImageTextModel) and embedding.reader is reader:
        rows = (embedding.of_latents(store[every[i : i + BATCH]]).detach().cpu() for i in range(0, len(every), BATCH))
        points = torch.cat(list(rows))
    else:
        points = embedding.texts(every)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(seed, 0))
        prior = Prior(images.shape[1], reader.width).to(find_device(device))
    run = PriorRun(prior, images, captions, dict(zip(every, points, strict=True)), store, seed)
    return small_steps(run, budget, out, identity, prior.save)
