"""Networks and their preconditioning: shapes everywhere, nesting, sharing, and the linear denoiser inside."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.conditions import Condition, Kinds
from sfumato.config import Config, preset
from sfumato.core.errors import InputError
from sfumato.denoisers import NETWORKS, Denoiser
from sfumato.denoisers.unet import _places
from sfumato.ladder import Ladder, coarse
from sfumato.training.loss import measure

SMALL_UNET = {"channels": (16, 16), "blocks": (1, 1), "width": 32}
SMALL: dict[str, dict[str, Any]] = {"unet": SMALL_UNET, "dit": {"channels": 64, "depth": 1}}
ON_NETWORKS = pytest.mark.parametrize("network", list(NETWORKS))


def small(ladder: Ladder, network: str = "unet", classes: int = 3, **changes: Any) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(ladder, Kinds(classes), network, SMALL.get(network), **changes)


def inputs(ladder: Ladder, stage: int, batch: int = 2) -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(1)
    sigma = torch.linspace(ladder.ends[stage] + 0.01, ladder.jumps[stage], batch)
    return torch.randn(batch, *ladder.shape(stage), generator=generator), sigma, Condition(torch.arange(batch) % 3)


def awake(denoiser: Denoiser) -> Denoiser:
    """Networks begin as zero: give every weight a value, so that everything takes part."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return denoiser


def test_every_network_is_tested():
    assert set(SMALL) >= set(NETWORKS), "give the new network small options here"


@ON_NETWORKS
@pytest.mark.parametrize(
    ("size", "channels", "stages"),
    [((28, 28), 1, 2), ((32, 32), 3, 2), ((64, 64), 3, 2), ((16, 40), 4, 2), ((8, 8), 1, 2), ((12, 20), 3, 1)],
)
def test_shapes_of_every_stage(network: str, size: tuple[int, int], channels: int, stages: int):
    ladder = Ladder(size, channels, stages)
    denoiser = awake(small(ladder, network))
    for stage in range(stages):
        z, sigma, c = inputs(ladder, stage)
        x_hat = denoiser(z, sigma, stage, c)
        assert x_hat.shape == z.shape and x_hat.dtype == torch.float32
        assert bool(torch.isfinite(x_hat).all())


@ON_NETWORKS
def test_labels_levels_detail_and_stage_are_heard(network: str):
    ladder = Ladder((8, 8), 1, 2)
    denoiser = awake(small(ladder, network))
    z, sigma, c = inputs(ladder, 1)
    with torch.no_grad():
        base = denoiser(z, sigma, 1, c)
        assert not torch.allclose(base, denoiser(z, sigma, 1, Condition(torch.tensor([1, 2]))), atol=1e-5)
        assert not torch.allclose(base, denoiser(z, sigma / 2, 1, c, ladder.detail(1, sigma)), atol=1e-5)
        assert not torch.allclose(base, denoiser(z, sigma, 1, c, torch.ones(2)), atol=1e-5)
        dropped = denoiser(z, sigma, 1, Condition(torch.full((2,), 3)))
        torch.testing.assert_close(denoiser(z, sigma, 1), dropped)  # no label drops them all


@ON_NETWORKS
def test_images_of_a_batch_do_not_mix(network: str):
    ladder = Ladder((8, 8), 1, 2)
    denoiser = awake(small(ladder, network))
    for stage in range(2):
        z, sigma, c = inputs(ladder, stage, batch=3)
        with torch.no_grad():
            whole = denoiser(z, sigma, stage, c)
            alone = torch.cat([denoiser(z[i : i + 1], sigma[i : i + 1], stage, c[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)


# -- nesting ------------------------------------------------------------------------------------------------------------


def test_a_coarse_stage_leaves_the_outer_levels_alone():
    ladder = Ladder((8, 8), 1, 2)
    denoiser = awake(small(ladder))  # level 0 is 4x4, level 1 is 2x2: stage 0 (4x4, patch 2) enters at level 1
    z, sigma, c = inputs(ladder, 0)
    denoiser(z, sigma, 0, c).square().sum().backward()
    grads = {n: p.grad for n, p in denoiser.named_parameters()}
    outer = [n for n in grads if re.search(r"\.(inward|outward|sink|rise)\.0\.", n)]
    inner = [n for n in grads if re.search(r"\.(inward|outward|attention)\.1\.", n)]
    assert outer and inner
    assert all(grads[name] is None for name in outer)
    assert all(grads[name] is not None for name in inner)
    assert grads["networks.0.read.1.weight"] is None and grads["networks.0.read.0.weight"] is not None
    denoiser.zero_grad()
    z, sigma, c = inputs(ladder, 1)
    denoiser(z, sigma, 1, c).square().sum().backward()
    assert all(p.grad is not None for n, p in denoiser.named_parameters() if n in outer + inner)


def test_a_coarse_stage_runs_fewer_operations():
    from torch.utils.flop_counter import FlopCounterMode

    ladder = Ladder((32, 32), 1, 3)
    denoiser = Denoiser(ladder, Kinds(), "unet", {"channels": (16, 16, 16), "blocks": (1, 1, 1), "width": 32})
    counts = []
    for stage in range(3):
        z, sigma, _ = inputs(ladder, stage)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            denoiser(z, sigma, stage)
        counts.append(counter.get_total_flops())
    assert counts[0] < 0.5 * counts[1] and counts[1] < 0.5 * counts[2]


def test_all_parameters_learn():
    """Nothing is built that no stage uses."""
    ladder = Ladder((16, 16), 3, 2)
    denoiser = awake(small(ladder))
    for stage in range(2):
        z, sigma, c = inputs(ladder, stage)
        denoiser(z, sigma, stage, c).square().sum().backward()
    assert [n for n, p in denoiser.named_parameters() if p.grad is None] == []


# -- sharing ------------------------------------------------------------------------------------------------------------


@ON_NETWORKS
def test_one_network_a_stage(network: str):
    ladder = Ladder((8, 8), 1, 2)
    denoiser = awake(small(ladder, network, sharing="stage"))
    assert len(denoiser.networks) == 2
    z, sigma, c = inputs(ladder, 0)
    denoiser(z, sigma, 0, c).sum().backward()
    assert all(p.grad is None for p in denoiser.networks[1].parameters())
    assert any(p.grad is not None for p in denoiser.networks[0].parameters())


@ON_NETWORKS
def test_one_network_a_rung(network: str):
    ladder = Ladder((8, 8), 1, 2)
    denoiser = awake(small(ladder, network, sharing="rung", rungs=(2, 3)))
    assert len(denoiser.networks) == 5
    used = []
    for stage, count in enumerate((2, 3)):
        for index in range(count):
            noisy, cleaner = denoiser.rung(stage, index)
            assert noisy.sigma > cleaner.sigma and noisy.stage == stage
            z, _, c = inputs(ladder, stage)
            denoiser.zero_grad(set_to_none=True)
            denoiser(z, torch.full((2,), noisy.sigma), stage, c).sum().backward()
            used.append([i for i, n in enumerate(denoiser.networks) if any(p.grad is not None for p in n.parameters())])
    assert used == [[0], [1], [2], [3], [4]]


def test_between_the_rungs_there_is_no_network():
    ladder = Ladder((8, 8), 1, 2)
    denoiser = small(ladder, sharing="rung", rungs=(2, 3))
    z, _, c = inputs(ladder, 1)
    top = denoiser.rung(1, 0)[0].sigma
    for sigma in (torch.full((2,), 0.9 * top), torch.tensor([top, 0.5 * top])):
        with pytest.raises(InputError, match="no rung of this model"):
            denoiser(z, sigma, 1, c)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sharing": "rung"}, "needs rungs="),
        ({"sharing": "stages"}, "did you mean 'stage'"),
        ({"network": "unett"}, "did you mean 'unet'"),
        ({"options": {"chanels": (16,)}}, "chanels"),
        ({"options": {"channels": (16, 16), "blocks": (1,)}}, "blocks"),
        ({"options": {"channels": (16, 16, 16, 16, 16), "blocks": (1,) * 5}}, "do not fit 8x8"),
        ({"options": {"channels": (16,), "blocks": (1,), "patch": 0}}, "do not fit"),
        ({"options": {"channels": (16,), "blocks": (1,), "patch": 3}}, "do not fit"),
        ({"options": {"channels": (0, 0), "blocks": (1, 1)}}, "channels"),
        ({"options": {"channels": (-16, 16), "blocks": (1, 1)}}, "channels"),
        ({"options": {"channels": (16, 16), "blocks": (1, 1), "width": -1}}, "width"),
        ({"options": {"channels": (16, 16), "blocks": (-1, 1)}}, "blocks"),
        ({"network": "dit", "options": {"channels": 100}}, "multiple of 64"),
    ],
)
def test_impossible_networks(changes: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        Denoiser(Ladder((8, 8), 1, 2), Kinds(3), **changes)


@pytest.mark.parametrize("channels", [(16, 96), (24, 200), (20, 36), (160, 132)])
def test_any_width_works(channels: tuple[int, int]):
    """Neither heads of attention nor groups of channels may ask for widths of a kind."""
    ladder = Ladder((8, 8), 1, 2)
    denoiser = Denoiser(ladder, Kinds(), "unet", {**SMALL_UNET, "channels": channels})
    for stage in range(2):
        z, sigma, _ = inputs(ladder, stage)
        assert denoiser(z, sigma, stage).shape == z.shape


# -- preconditioning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("plain", [False, True])
def test_a_network_that_says_nothing_is_the_linear_denoiser(stage: int, plain: bool):
    """For white data of variance d^2 the best denoiser multiplies P z by d^2 / (d^2 + s^2), Q z by r d^2 / (r^2 d^2 + s^2)."""
    ladder, deviation = Ladder((16, 16), 1, 3), 0.6
    # So white in every stage (pooling halves it) that measure() sees d on each axis: x_k has d_k = d / 2^(2 - k).
    x = deviation * torch.randn(3000, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    smooth_rms, sharp_rms = measure(x, ladder)
    denoiser = small(ladder, smooth_rms=smooth_rms, sharp_rms=sharp_rms)  # the last layer of a new network is zero
    z, sigma, c = inputs(ladder, stage, batch=4)
    detail = torch.ones(4) if plain else ladder.detail(stage, sigma)
    here = deviation / 2 ** (2 - stage)
    s, r = sigma[:, None, None, None], detail[:, None, None, None]
    on_p, on_q = here**2 / (here**2 + s**2), r * here**2 / (r**2 * here**2 + s**2)
    smooth = coarse(z) if stage else z
    with torch.no_grad():
        x_hat = denoiser(z, sigma, stage, c, detail if plain else None)
    torch.testing.assert_close(x_hat, on_p * smooth + on_q * (z - smooth), rtol=0.05, atol=0.01)


@pytest.mark.parametrize("stage", [0, 1])
def test_the_task_of_the_network_has_unit_size(stage: int):
    """Input and target of the network, on P and on Q, at every level, for white data: root mean square 1."""
    ladder, deviation = Ladder((8, 8), 1, 2), 0.5
    x = deviation * torch.randn(4000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth_rms, sharp_rms = measure(x, ladder)
    denoiser = small(ladder, smooth_rms=smooth_rms, sharp_rms=sharp_rms)
    clean = ladder.shrink(x, stage)
    seen: list[Tensor] = []
    denoiser.networks[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    for share in (0.05, 0.4, 0.8):
        level = ladder.ends[stage] + share * (ladder.jumps[stage] - ladder.ends[stage])
        sigma = torch.full((len(x),), level)
        z = ladder.marginal(x, stage, level, torch.randn(clean.shape, generator=torch.Generator().manual_seed(2)))
        with torch.no_grad():
            quiet = denoiser(z, sigma, stage)
            denoiser.networks[0].write[str(stage)].bias.fill_(1.0)  # type: ignore[union-attr,index]
            scale_p = float((denoiser(z, sigma, stage) - quiet).mean())  # the factor on F's smooth part
            denoiser.networks[0].write[str(stage)].bias.fill_(0.0)  # type: ignore[union-attr,index]
        smooth = coarse(clean - quiet) if stage else clean - quiet
        unit = 0.5 if stage else 1.0  # a white image of size 1 has a smooth part of size 1/2
        assert float(smooth.square().mean().sqrt()) / scale_p == pytest.approx(unit, rel=0.05)
        assert float(seen[-1].square().mean().sqrt()) == pytest.approx(1, rel=0.05)


def test_clean_images_stay_what_they_are():
    """At a level near 0 the answer is the image itself, whatever the network says."""
    ladder = Ladder((8, 8), 1, 2)
    denoiser = awake(small(ladder))
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(denoiser(x, torch.full((2,), 1e-4), 1), x, atol=0.02, rtol=0)


# -- presets ------------------------------------------------------------------------------------------------------------


def forward_on_meta(config: Config, size: tuple[int, int], channels: int) -> tuple[int, int]:
    """Build the model without memory and run each stage: (operations of the finest stage, tokens that attend)."""
    from torch.utils.flop_counter import FlopCounterMode

    ladder = config.ladder(size, channels)
    tokens = [0]
    operations = 0
    with torch.device("meta"):
        denoiser = config.denoiser(ladder, Kinds(10))
        for module in denoiser.modules():
            if type(module).__name__ == "Attention":
                module.register_forward_pre_hook(lambda _, arguments: tokens.append(arguments[0].shape[-2:].numel()))
        for stage in range(ladder.stages):
            z = torch.zeros(1, *ladder.shape(stage))
            c = Condition(torch.zeros(1, dtype=torch.int64))
            with FlopCounterMode(display=False) as counter:
                assert denoiser(z, torch.ones(1), stage, c, torch.ones(1)).shape == z.shape
            operations = counter.get_total_flops()
    return operations, max(tokens)


@pytest.mark.parametrize("side", range(8, 257, 2))
def test_preset_of_every_even_size_has_a_place_for_every_stage(side: int):
    config = preset((side, side))
    ladder = config.ladder((side, side), 3)
    assert ladder.shape(0)[1] >= 4
    patch = config.options["patch"]
    places = _places(ladder, patch, len(config.options["channels"]))
    sides = [place.patch * (side // patch >> place.level) for place in places]
    assert [ladder.shape(k)[1] for k in range(ladder.stages)] == sides


@pytest.mark.parametrize("side", [*range(8, 34, 2), *range(34, 257, 14), 48, 64, 128, 192, 256])
def test_preset_of_even_sizes_builds_and_runs(side: int):
    operations, _ = forward_on_meta(preset((side, side)), (side, side), 3)
    assert operations > 0


@pytest.mark.parametrize("side", [62, 66, 126, 146, 188, 254])
def test_sizes_that_do_not_halve_cost_no_more_than_their_neighbours(side: int):
    """A preset's widest level belongs on a small feature map; with few levels it must not end up on a large one."""
    neighbour = (side + 31) // 32 * 32
    operations, tokens = forward_on_meta(preset((side, side)), (side, side), 3)
    usual, _ = forward_on_meta(preset((neighbour, neighbour)), (neighbour, neighbour), 3)
    assert operations < 4 * usual
    assert tokens <= 2304, f"attention over {tokens} tokens"


OBLONG = [(4, 4), (8, 16), (16, 8), (10, 12), (12, 10), (28, 14), (24, 64), (64, 20), (32, 6), (8, 256), (256, 100)]


@pytest.mark.parametrize("size", [*OBLONG, (30, 46)])
def test_preset_of_oblong_sizes_builds_and_runs(size: tuple[int, int]):
    operations, _ = forward_on_meta(preset(size), size, 1)
    assert operations > 0


@pytest.mark.parametrize(
    ("size", "words"), [((7, 8), "7x8"), ((2, 2), "2x2"), ((258, 258), "too large"), ((8, 9), "even")]
)
def test_sizes_that_no_preset_fits(size: tuple[int, int], words: str):
    with pytest.raises(InputError, match=words):
        preset(size)
