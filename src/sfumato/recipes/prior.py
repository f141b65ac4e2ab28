"""The diffusion prior of DALL-E 2: from what a text says to the embedding of an image of it (Ramesh et al. 2022, 2.2).

A small network on vectors in place of the paper's transformer on sequences; as there it predicts the clean embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core import checkpoint
from sfumato.core.devices import find_device
from sfumato.core.errors import InputError

FORMAT = 1
HIDDEN, BLOCKS = 384, 4
HIGHEST, LOWEST = 20.0, 0.02  # noise levels of sampling, where the data's standard deviation is 1
STEPS = 16
CANDIDATES = 2  # embeddings drawn for each text, of which the one more like it is kept (section 2.2)
GUIDANCE = 2.0  # of emoji: nearer to the true embeddings than 1 (cosine 0.47 to 0.6), also of held-out texts

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
        sizes = {"width": self.width, "text_width": self.text_width, "hidden": self.hidden, "blocks": len(self.blocks)}
        checkpoint.write(Path(path), self.state_dict(), {"kind": "prior", "format": FORMAT, **sizes})

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
