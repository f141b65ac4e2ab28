"""Muon: orthogonal updates, and which parameters get them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfumato.conditions import Kinds
from sfumato.config import Config
from sfumato.ladder import Ladder
from sfumato.training.optimizer import INNER, RMS, Muon, optimizers, orthogonal


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8)])
def test_orthogonal_moves_singular_values_near_one_and_keeps_the_directions(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    found = torch.linalg.svdvals(orthogonal(matrices).float())
    assert (found > 0.5).all() and (found < 1.4).all()
    aligned = (orthogonal(matrices).float() * (u @ vh)).sum((1, 2)) / orthogonal(matrices).float().norm(dim=(1, 2))
    assert (aligned / min(shape[1:]) ** 0.5 > 0.95).all()  # the cosine to the nearest orthogonal matrix


def test_the_first_step_is_the_orthogonal_gradient_at_the_promised_size() -> None:
    weight = nn.Parameter(torch.zeros(16, 4, 3, 3))
    gradient = torch.randn(16, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    weight.grad = gradient.clone()
    Muon([{"params": [weight], "lr": 0.1, "weight_decay": 0.0}]).step()
    expected = -0.1 * RMS * 36**0.5 * orthogonal(gradient.reshape(1, 16, 36))[0].float()
    difference = (weight.detach().reshape(16, 36) - expected).norm() / expected.norm()
    assert float(difference) < 0.05  # of bf16
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.1 * RMS, rel=0.3)


def test_weight_decay_shrinks_by_rate_times_decay() -> None:
    weight = nn.Parameter(torch.ones(16, 16))
    weight.grad = torch.zeros(16, 16)
    Muon([{"params": [weight], "lr": 0.1, "weight_decay": 0.5}]).step()
    assert torch.allclose(weight, torch.full((16, 16), 0.95))


def test_pixels_embeddings_norms_and_biases_stay_with_adamw() -> None:
    config = Config(options={"channels": (32, 32), "blocks": (1, 1), "width": 32})
    denoiser = config.denoiser(Ladder((16, 16), 1, 3, (), ()), Kinds(10))
    adamw, muon = optimizers(denoiser, config)
    names = {parameter: name for name, parameter in denoiser.named_parameters()}
    inner = {names[p] for group in muon.param_groups for p in group["params"]}
    outer = {names[p] for group in adamw.param_groups for p in group["params"]}
    assert inner.isdisjoint(outer) and inner | outer == set(names.values())
    assert all(min(p.shape[:2]) >= INNER and p.ndim > 1 for p, name in names.items() if name in inner)
    assert not any(
        part in name for name in inner for part in (".read.", ".write.", ".embed.", ".shifts.", "norm", "bias")
    )
    assert any("first" in name for name in inner)
