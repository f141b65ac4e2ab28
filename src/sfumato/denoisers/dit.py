"""A small pixel transformer (after DiT, Peebles and Xie 2022, arXiv 2212.09748), shared by all stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.conditions import Condition, Kinds
from sfumato.core.errors import InputError
from sfumato.denoisers import layers
from sfumato.denoisers.layers import attend, depth_to_space, space_to_depth, zero
from sfumato.denoisers.networks import NETWORKS
from sfumato.ladder import Ladder


class TransformerBlock(nn.Module):
    """Attention and a feed-forward layer, both modulated by the embedding (adaLN-Zero)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.mix = nn.Linear(channels, channels)
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor, turn: Tensor, modulation: Tensor) -> Tensor:
        """x (B, N, C), turn (N, d/2) angles, modulation (B, 6C) -> (B, N, C)."""
        batch, count, channels = x.shape
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation[:, None].chunk(6, dim=2)  # each (B, 1, C)
        hidden = torch.addcmul(shift_a, F.layer_norm(x, (channels,)), 1 + scale_a)
        query, key, value = self.qkv(hidden).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query = rotate(F.normalize(query, dim=-1) * query.shape[-1] ** 0.5, turn)
        key = rotate(F.normalize(key, dim=-1), turn)
        mixed = attend(query * key.shape[-1] ** 0.5, key, value).transpose(1, 2).reshape(batch, count, channels)
        x = torch.addcmul(x, gate_a, self.mix(mixed))
        hidden = torch.addcmul(shift_f, F.layer_norm(x, (channels,)), 1 + scale_f)
        return torch.addcmul(x, gate_f, self.narrow(F.gelu(self.widen(hidden), approximate="tanh")))


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021): (B, heads, N, d) with pairs of numbers turned by (N, d/2) angles."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = turn.cos().to(x), turn.sin().to(x)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def angles(height: int, width: int, patch_share: float, count: int) -> Tensor:
    """(height * width, count) rotary angles: half of them for rows, half for columns.

    Positions are those of the finest stage (``patch_share`` of its patches lie in one of this stage's), so that the
    same place has the same angle at every resolution.
    """
    rates = torch.exp(-torch.linspace(0, 3, count // 2))
    row = (torch.arange(height) + 0.5)[:, None] * patch_share * rates  # (height, count/2)
    column = (torch.arange(width) + 0.5)[:, None] * patch_share * rates
    both = torch.cat([row[:, None].expand(-1, width, -1), column[None].expand(height, -1, -1)], dim=2)
    return both.reshape(height * width, -1)


@NETWORKS.add("dit")
class PixelTransformer(nn.Module):
    """Predicts the (preconditioned) clean image of any stage: patches of pixels, full attention among them.

    A coarse stage costs less because it has fewer patches.

    Args:
        ladder, kinds, serves: as for the U-Net; a text's tokens are attended to after each block.
        channels: of a token; a multiple of 64.
        depth: number of blocks.
        patch: pixels a side of a token, halved for stages that it does not divide.
    """

    def __init__(
        self, ladder: Ladder, kinds: Kinds, serves: Sequence[int], channels: int = 192, depth: int = 6, patch: int = 2
    ) -> None:
        super().__init__()
        if channels % 64 or channels < 64:
            raise InputError(f"channels={channels} does not work for the network 'dit': give a multiple of 64")
        if depth < 1 or patch < 1:
            raise InputError(f"depth={depth} and patch={patch} must be 1 or more for the network 'dit'")
        self.patch = {stage: _fitting(ladder.shape(stage)[1:], patch) for stage in serves}
        self.share = {stage: 2.0 ** (ladder.stages - 1 - stage) * self.patch[stage] / patch for stage in serves}
        self.channels = channels
        self.embed = layers.LevelEmbedding(channels, ladder.stages, kinds)
        self.modulation = zero(layers.Modulation(channels, 6 * channels * depth + 2 * channels))
        self.blocks = nn.ModuleList(TransformerBlock(channels, channels // 64) for _ in range(depth))
        readers = depth if kinds.tokens else 0
        self.text = nn.ModuleList(layers.TextAttention(channels, kinds.tokens) for _ in range(readers))
        self.read, self.write = nn.ModuleDict(), nn.ModuleDict()
        for stage, side in self.patch.items():
            self.read[str(stage)] = nn.Linear((ladder.channels + kinds.image) * side**2, channels)
            self.write[str(stage)] = zero(nn.Linear(channels, ladder.channels * side**2))

    def forward(self, z: Tensor, sigma: Tensor, detail: Tensor, stage: int, c: Condition) -> Tensor:
        """z (B, C + kinds.image, h, w) of unit size, sigma and detail (B,) -> (B, C, h, w)."""
        patches = space_to_depth(z, self.patch[stage])  # (B, C p p, h/p, w/p)
        _, _, height, width = patches.shape
        modulation = self.modulation(self.embed(sigma, detail, stage, c))
        per_block, last = modulation.tensor_split([-2 * self.channels], dim=1)
        turn = angles(height, width, self.share[stage], 32).to(z.device)
        x = self.read[str(stage)](patches.flatten(2).transpose(1, 2))  # (B, N, C)
        for i, own in enumerate(per_block.chunk(len(self.blocks), dim=1)):
            x = self.blocks[i](x, turn, own)
            if self.text:
                x = x + self.text[i](F.layer_norm(x, (self.channels,)), c)
        shift, scale = last[:, None].chunk(2, dim=2)
        x = self.write[str(stage)](torch.addcmul(shift, F.layer_norm(x, (self.channels,)), 1 + scale))
        return depth_to_space(x.transpose(1, 2).unflatten(2, (height, width)), self.patch[stage])


def _fitting(size: tuple[int, int], patch: int) -> int:
    """The largest patch up to ``patch`` that divides both sides."""
    return next(p for p in range(patch, 0, -1) if size[0] % p == 0 and size[1] % p == 0)
