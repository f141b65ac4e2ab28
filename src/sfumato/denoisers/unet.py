"""The nested U-Net: a coarse stage runs only the inner part that a finer stage wraps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.conditions import Condition, Kinds
from sfumato.core.errors import InputError
from sfumato.denoisers import layers
from sfumato.denoisers.layers import depth_to_space, group_norm, space_to_depth, zero
from sfumato.denoisers.networks import NETWORKS
from sfumato.ladder import Ladder


class Block(nn.Module):
    """Residual block: convolution, a shift by the embedding, normalisation, SiLU, convolution.

    Normalising once a block and shifting before it (not scaling and shifting after it) keeps the memory traffic
    between the convolutions low: on a CPU that traffic, not the arithmetic, is what a usual block waits for.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = group_norm(channels)
        nn.init.normal_(self.first.weight, std=(9 * channels) ** -0.5)
        self.second = zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """x (B, C, h, w), shift (B, C) -> (B, C, h, w)."""
        hidden = self.first(x) + shift[:, :, None, None]
        return x + self.second(F.silu(self.norm(hidden)))


class Upsample(nn.Module):
    """From an inner level to the next outer one: a 1x1 convolution to four values a pixel, spread over 2x2."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.spread = nn.Linear(inner, 4 * outer)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        wide = self.spread(x.permute(0, 2, 3, 1)).view(batch, height, width, 2, 2, -1)
        return wide.permute(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """From a level to the next inner one: each 2x2 block of pixels becomes one, by a matrix."""

    def __init__(self, outer: int, inner: int) -> None:
        super().__init__()
        self.merge = nn.Linear(4 * outer, inner)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        blocks = x.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2, channels)
        return self.merge(blocks.transpose(2, 3).reshape(batch, height // 2, width // 2, -1)).permute(0, 3, 1, 2)


@NETWORKS.add("unet")
class NestedUNet(nn.Module):
    """Predicts the (preconditioned) clean image of any stage.

    Level 0 is the outermost feature map; each further level has half its sides. Stage k reads and writes its image
    through its own convolutions, in patches of ``patch[k]`` pixels, at the level whose size fits, and runs that level
    and all inner ones.

    Args:
        ladder: sizes and channels.
        kinds: the parts of c. A text's tokens are attended to where the feature map attends to itself; an image to be
            enlarged comes in beside z, as further channels.
        serves: the stages that this network is for; only what they run is built.
        channels: of each level, outermost first.
        blocks: residual blocks on the way in, and as many on the way out, at each level.
        patch: pixels a side that one feature of level 0 holds. Coarser stages use it too, or the largest smaller one
            with which they fit a level.
        attention: levels, counted from the innermost, that attend.
        width: of the embedding.
    """

    def __init__(
        self,
        ladder: Ladder,
        kinds: Kinds,
        serves: Sequence[int],
        channels: Sequence[int] = (64, 128),
        blocks: Sequence[int] = (2, 2),
        patch: int = 2,
        attention: int = 1,
        width: int = 256,
    ) -> None:
        super().__init__()
        if len(blocks) != len(channels) or not channels:
            raise InputError(f"blocks {tuple(blocks)} and channels {tuple(channels)} must be as many: one a level")
        if min(*channels, *blocks, width) < 1:
            raise InputError(f"channels={tuple(channels)}, blocks={tuple(blocks)} and width={width} must be 1 or more")
        self.places = _places(ladder, patch, len(channels))
        levels = range(min(self.places[stage].level for stage in serves), len(channels))
        self.embed = layers.LevelEmbedding(width, ladder.stages, kinds)
        self.widths = {level: [channels[level]] * (2 * blocks[level]) for level in levels}
        self.shifts = layers.Modulation(width, sum(map(sum, self.widths.values())))
        nn.init.normal_(self.shifts.weight, std=0.5 * width**-0.5)
        self.inward, self.outward, self.attention = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.sink, self.rise, self.text = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for level in levels:
            here = channels[level]
            self.inward[str(level)] = nn.ModuleList(Block(here) for _ in range(blocks[level]))
            self.outward[str(level)] = nn.ModuleList(Block(here) for _ in range(blocks[level]))
            if level >= len(channels) - attention:
                self.attention[str(level)] = layers.Attention(here)
                if kinds.tokens:
                    self.text[str(level)] = layers.CrossAttention(here, kinds.tokens)
            if level + 1 < len(channels):
                self.sink[str(level)] = Downsample(here, channels[level + 1])
                self.rise[str(level)] = Upsample(channels[level + 1], here)
        self.read, self.norm, self.write = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for stage in serves:
            pixels, here = self.places[stage].patch ** 2, channels[self.places[stage].level]
            values = ladder.channels * pixels
            self.read[str(stage)] = nn.Conv2d(values + kinds.image * pixels, here, 3, padding=1)
            self.norm[str(stage)] = group_norm(here)
            self.write[str(stage)] = zero(nn.Conv2d(here, values, 3, padding=1))

    def forward(self, z: Tensor, sigma: Tensor, detail: Tensor, stage: int, c: Condition) -> Tensor:
        """z (B, C + kinds.image, h, w) of unit size, sigma and detail (B,) -> (B, C, h, w)."""
        patch, level = self.places[stage]
        widths = [width for each in self.widths.values() for width in each]
        pieces = iter(self.shifts(self.embed(sigma, detail, stage, c)).split(widths, dim=1))
        shifts = {i: [next(pieces) for _ in each] for i, each in self.widths.items()}  # of every block, (B, C_i)
        x = self._level(self.read[str(stage)](space_to_depth(z, patch)), level, shifts, c)
        return depth_to_space(self.write[str(stage)](F.silu(self.norm[str(stage)](x))), patch)

    def _level(self, x: Tensor, level: int, shifts: dict[int, list[Tensor]], c: Condition) -> Tensor:
        """A level and, within it, all inner ones: (B, C_level, h, w) -> the same."""
        name, inward = str(level), len(shifts[level]) // 2
        for block, shift in zip(self.inward[name].children(), shifts[level][:inward], strict=True):
            x = block(x, shift)
        if name in self.attention:
            x = self.attention[name](x)
        if name in self.text:
            x = self.text[name](x, c)
        if name in self.sink:
            x = x + self.rise[name](self._level(self.sink[name](x), level + 1, shifts, c))
        for block, shift in zip(self.outward[name].children(), shifts[level][inward:], strict=True):
            x = block(x, shift)
        return x


class Place(NamedTuple):
    """Where a stage enters the network: the pixels a side that a feature holds, and the level."""

    patch: int
    level: int


def _places(ladder: Ladder, patch: int, levels: int) -> list[Place]:
    """The place of each stage; InputError where one has none."""
    height, width = ladder.size
    unit = patch * 2 ** (levels - 1)
    if patch < 1 or height % unit or width % unit:
        problem = f"{levels} levels in patches of {patch} do not fit {height}x{width}"
        raise InputError(f"{problem}: set fewer channels= or a smaller patch=")
    sizes = [(height // patch >> level, width // patch >> level) for level in range(levels)]
    places = []
    for stage in range(ladder.stages):
        _, height, width = ladder.shape(stage)
        tried = [p for p in range(patch, 0, -1) if height % p == 0 and (height // p, width // p) in sizes]
        if not tried:
            problem = f"stage {stage} ({height}x{width}) fits none of the levels {sizes}"
            raise InputError(f"{problem}: set more channels= or fewer stages=")
        places.append(Place(tried[0], sizes.index((height // tried[0], width // tried[0]))))
    return places
