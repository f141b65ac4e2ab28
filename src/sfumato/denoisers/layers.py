"""What the networks share: embeddings, attention, space-to-depth, and a normalisation that this kind of machine likes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUP = 32  # channels a group: narrower groups leave the vectorised bf16 path of a CPU's group norm


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation over groups of about 32 channels."""
    groups = max(channels // NORM_GROUP, 1)
    return nn.GroupNorm(groups if channels % groups == 0 else 1, channels)


def zero(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The layer with all weights zero, so that a residual branch or an output begins as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def space_to_depth(x: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, C * patch^2, H / patch, W / patch)."""
    return x if patch == 1 else F.pixel_unshuffle(x, patch).contiguous(memory_format=torch.channels_last)


def depth_to_space(x: Tensor, patch: int) -> Tensor:
    """The inverse of ``space_to_depth``."""
    return x if patch == 1 else F.pixel_shuffle(x, patch)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of (B, heads, N, d) on (B, heads, M, d) -> (B, heads, N, d)."""
    if query.device.type == "cpu":  # for a hundred tokens two plain products run 4 times faster than the fused kernel
        return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


class Attention(nn.Module):
    """Residual self-attention over the pixels of a small feature map, (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int, head_width: int = 64) -> None:
        super().__init__()
        self.heads = next(h for h in range(max(channels // head_width, 1), 0, -1) if channels % h == 0)
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)  # (B, N, C)
        qkv = self.qkv(tokens).view(batch, height * width, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        mixed = attend(query, key, value).transpose(1, 2).reshape(batch, height * width, channels)
        return x + self.out(mixed).view(batch, height, width, channels).permute(0, 3, 1, 2)


class Modulation(nn.Linear):
    """From the embedding to the shifts, scales or gates of all blocks at once."""


class LevelEmbedding(nn.Module):
    """What the network is told of its place on the ladder and of c: noise level, share of detail, stage, class.

    Args:
        width: of the embedding.
        stages: how many stages the ladder has.
        classes: how many labels there are; label ``classes`` stands for "dropped".
    """

    def __init__(self, width: int, stages: int, classes: int) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(64), 16)), persistent=False)
        self.stage = nn.Embedding(stages, width)
        self.label = nn.Embedding(classes + 1, width)
        self.level = nn.Linear(2 * 2 * 16, width)
        self.out = nn.Linear(width, width)
        for layer in (self.level, self.out):
            nn.init.normal_(
                layer.weight, std=(2 / layer.in_features) ** 0.5
            )  # so that what it is told is heard at once

    def forward(self, sigma: Tensor, detail: Tensor, stage: int, label: Tensor) -> Tensor:
        """sigma, detail (B,) float; label (B,) int64 -> (B, width)."""
        where = torch.stack([sigma.log() / 4, detail], dim=1)  # (B, 2), each of order 1
        angles = where[:, :, None] * self.frequencies.to(where)  # (B, 2, 16)
        waves = torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)
        hidden = F.silu(self.level(waves) + self.stage.weight[stage] + self.label(label))
        return F.silu(self.out(hidden))
