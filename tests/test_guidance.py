"""Guidance against its formulas written out, and how often it asks the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.core.errors import InputError
from sfumato.guidance import Guidance, cfg, dynamic_threshold, guided, rescale
from sfumato.samplers import Denoise

C, U = torch.randn(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def counted(answer: Tensor, calls: list[float]) -> Denoise:
    def denoise(z: Tensor, sigma: float, stage: int) -> Tensor:
        calls.append(sigma)
        return answer

    return denoise


def run(guidance: Guidance, sigma: float = 1.0) -> tuple[Tensor, int]:
    """What comes out for c = C and u = U, and how often u was asked for."""
    calls: list[float] = []
    return guided(counted(C, []), counted(U, calls), guidance)(torch.zeros(5, 3, 8, 8), sigma, 0), len(calls)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5])
def test_guidance_is_u_plus_g_times_the_difference(scale: float):
    out, calls = run(Guidance(scale))
    torch.testing.assert_close(out, U + scale * (C - U))
    torch.testing.assert_close(cfg(C, U, scale), U + scale * (C - U))
    assert calls == 1


def test_scale_1_asks_for_nothing_more():
    out, calls = run(Guidance(1.0))
    assert torch.equal(out, C) and calls == 0


def test_nothing_to_guide_with_changes_nothing():
    assert torch.equal(guided(counted(C, []), None, Guidance(4.0))(C, 1.0, 0), C)


@pytest.mark.parametrize(("sigma", "acts"), [(0.29, False), (0.3, True), (1.0, True), (2.0, True), (2.01, False)])
def test_interval(sigma: float, acts: bool):
    out, calls = run(Guidance(3.0, interval=(0.3, 2.0)), sigma)
    assert calls == int(acts)
    torch.testing.assert_close(out, U + 3 * (C - U) if acts else C)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_rescale_moves_the_standard_deviation(share: float):
    strong = U + 5 * (C - U)
    out = rescale(strong, C, share)
    axes = (1, 2, 3)
    expected = (1 - share) * strong.std(axes) + share * C.std(axes)
    torch.testing.assert_close(out.std(axes), expected)
    torch.testing.assert_close(run(Guidance(5.0, rescale=share))[0], out)


def test_rescale_of_a_flat_image_is_finite():
    flat = torch.zeros(2, 1, 4, 4)
    assert bool(torch.isfinite(rescale(flat, flat, 1.0)).all())


def clipped(x: Tensor, percentile: float) -> np.ndarray:
    limit = np.maximum(np.quantile(np.abs(x.flatten(1).numpy()), percentile, axis=1), 1.0)[:, None, None, None]
    return np.clip(x.numpy(), -limit, limit) / limit


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995, 1.0])
def test_dynamic_threshold_is_numpys_percentile(percentile: float):
    strong = 2.5 * C
    found = dynamic_threshold(strong, percentile), run(Guidance(1.0, threshold=percentile))[0]
    for one, x in zip(found, (strong, C), strict=True):
        np.testing.assert_allclose(one.numpy(), clipped(x, percentile), rtol=1e-5, atol=1e-5)


def test_dynamic_threshold_leaves_images_within_range_alone():
    x = 0.9 * torch.tanh(C)
    assert torch.equal(dynamic_threshold(x, 0.995), x)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scale": -1.0}, "guidance -1"),
        ({"scale": float("nan")}, "guidance nan"),
        ({"scale": float("inf")}, "guidance inf"),
        ({"interval": (2.0, 1.0)}, "interval 2.0 to 1.0"),
        ({"interval": (-1.0, 1.0)}, "interval"),
        ({"rescale": 1.5}, "rescale 1.5"),
        ({"threshold": 99.5}, "threshold 99.5"),
        ({"threshold": -0.1}, "threshold"),
    ],
)
def test_impossible_guidance(arguments: dict, words: str):
    with pytest.raises(InputError, match=words):
        Guidance(**arguments)
