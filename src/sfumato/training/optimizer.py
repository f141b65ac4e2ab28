"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.config import Config
from sfumato.core.devices import autocast_type
from sfumato.denoisers.layers import LevelEmbedding, Modulation
from sfumato.engine import decay_groups

STEPS = 5  # Newton-Schulz iterations
QUINTIC = (3.4445, -4.7750, 2.0315)  # of the iteration X <- a X + (b X X' + c (X X')^2) X, tuned by Jordan for 5 steps
INNER = 16  # channels
RMS = 0.2  # of an update, as large as AdamW's usually is (Liu et al. 2025, arXiv 2502.16982), so that both share a rate


def orthogonal(matrices: Tensor) -> Tensor:
    """(N, m, n) matrices with all their singular values moved near 1, by products alone."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(autocast_type(matrices.device) or torch.float32)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    identity = a * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for _ in range(STEPS):
        gram = x @ x.mT
        # All that acts on X goes into one small matrix: on a CPU, adding to the large one costs as much as a product.
        x = (torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + identity) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal; for the matrices inside a network, convolutions as (out, in * k * k)."""

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float = 0.95) -> None:
        super().__init__(groups, {"momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient; those of one shape together."""
        for group in self.param_groups:
            ready = [p for p in group["params"] if p.grad is not None]
            for parameter in ready:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
            if not ready:
                continue
            moments = [self.state[p]["momentum"] for p in ready]
            grads = [p.grad for p in ready]
            torch._foreach_lerp_(moments, grads, 1 - group["momentum"])  # pyright: ignore[reportPrivateImportUsage]
            ahead = torch._foreach_lerp(grads, moments, group["momentum"])  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_mul_(ready, 1 - group["lr"] * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]
            pairs = sorted(zip(ready, ahead, strict=True), key=lambda pair: tuple(pair[0].shape))
            for shape, same in groupby(pairs, key=lambda pair: tuple(pair[0].shape)):
                same = list(same)
                rows = shape[0]
                updates = orthogonal(torch.stack([g.reshape(rows, -1) for _, g in same]))
                scale = RMS * max(rows, updates.shape[2]) ** 0.5
                for (parameter, _), update in zip(same, updates, strict=True):
                    parameter.add_(update.view(shape), alpha=-group["lr"] * scale)


def optimizers(denoiser: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters; or, with optimizer=muon, Muon for the matrices inside and AdamW for the rest.

    Inside are the weights of convolutions and linear layers with INNER channels or more on both sides that act on feature
    maps: what reads and writes pixels, the embedding and what it modulates, norms and biases stay with AdamW.
    """
    inner: list[Tensor] = []
    if config.optimizer == "muon":
        outside = {
            part for m in denoiser.modules() if isinstance(m, LevelEmbedding | Modulation) for part in m.modules()
        }
        layers = [m for m in denoiser.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m not in outside]
        inner = [m.weight for m in layers if min(m.weight.shape[:2]) >= INNER]
    chosen = set(inner)
    rest = [p for p in denoiser.parameters() if p not in chosen]
    groups = decay_groups(rest, config.weight_decay)
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), fused=True)]
    if inner:
        made.append(Muon([{"params": inner, "weight_decay": config.weight_decay, "lr": 0.0}]))
    return made
