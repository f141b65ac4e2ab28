"""What the networks share: embeddings, attention, space-to-depth, and a normalisation that this kind of machine likes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.conditions import Condition, Kinds

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


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of (B, heads, N, d) on those of (B, heads, M, d) where mask (B, M) is True -> (B, heads, N, d)."""
    if mask is not None:
        mask = mask[:, None, None]  # (B, 1, 1, M)
    if query.device.type == "cpu":  # for a hundred tokens two plain products run 4 times faster than the fused kernel
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value, mask)


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


class TextAttention(nn.Module):
    """Attention of pixels on the tokens of a text, (B, N, C) -> (B, N, C).

    One learned token is always there beside the text's: what is looked at where the text says nothing, or is dropped.
    """

    def __init__(self, channels: int, width: int, head_width: int = 64) -> None:
        super().__init__()
        self.heads = next(h for h in range(max(channels // head_width, 1), 0, -1) if channels % h == 0)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(width, 2 * channels)
        self.nothing = nn.Parameter(torch.zeros(1, 1, 2 * channels))
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, pixels: Tensor, c: Condition) -> Tensor:
        batch, count, channels = pixels.shape
        key_value, mask = self.nothing.expand(batch, -1, -1).to(pixels), None
        if c.tokens is not None and c.mask is not None:
            told = self.key_value(F.rms_norm(c.tokens.to(pixels), c.tokens.shape[-1:]))  # (B, L, 2C)
            key_value = torch.cat([key_value.to(told), told], dim=1)
            there = c.mask if c.present is None else c.mask & c.present[:, None]
            mask = F.pad(there, (1, 0), value=True)
        query = self.query(pixels).view(batch, count, self.heads, -1).transpose(1, 2)
        key, value = key_value.view(batch, -1, 2, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        mixed = attend(query, key.to(query), value.to(query), mask)  # (B, heads, N, d)
        return self.out(mixed.transpose(1, 2).reshape(batch, count, channels))


class CrossAttention(TextAttention):
    """The same as a residual branch over a feature map, (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width)
        self.norm = group_norm(channels)

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        batch, channels, height, width = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)  # (B, N, C)
        return x + super().forward(pixels, c).view(batch, height, width, channels).permute(0, 3, 1, 2)


class Modulation(nn.Linear):
    """From the embedding to the shifts, scales or gates of all blocks at once."""


class LevelEmbedding(nn.Module):
    """What the network is told of its place on the ladder and of c: noise level, share of detail, stage, class, vector.

    Args:
        width: of the embedding.
        stages: how many stages the ladder has.
        kinds: the parts of c; label ``kinds.classes`` stands for "dropped".
    """

    def __init__(self, width: int, stages: int, kinds: Kinds) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(64), 16)), persistent=False)
        self.stage = nn.Embedding(stages, width)
        self.label = nn.Embedding(kinds.classes + 1, width)
        self.numbers = 3 if kinds.image else 2  # noise level, detail, and the noise level of the image to enlarge
        self.level = nn.Linear(self.numbers * 2 * 16, width)
        self.out = nn.Linear(width, width)
        for layer in (self.level, self.out):
            nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)  # so that the condition is heard at once
        self.vector = nn.Linear(kinds.vector, width, bias=False) if kinds.vector else None

    def forward(self, sigma: Tensor, detail: Tensor, stage: int, c: Condition) -> Tensor:
        """sigma, detail (B,) float -> (B, width)."""
        numbers = [sigma.log() / 4, detail]  # each of order 1
        if self.numbers == 3:
            numbers.append(c.level.log() / 4 if c.level is not None else torch.zeros_like(sigma))
        angles = torch.stack(numbers, dim=1)[:, :, None] * self.frequencies.to(sigma)  # (B, 2 or 3, 16)
        waves = torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)
        hidden = self.level(waves) + self.stage.weight[stage] + self.label(self._label(sigma, c))
        if self.vector is not None and c.vector is not None:
            told = self.vector(F.rms_norm(c.vector.to(sigma), c.vector.shape[-1:]))
            hidden = hidden + (told if c.present is None else told * c.present[:, None])
        return F.silu(self.out(F.silu(hidden)))

    def _label(self, sigma: Tensor, c: Condition) -> Tensor:
        """(B,) numbers into the table, where the last stands for no label."""
        dropped = torch.full((len(sigma),), self.label.num_embeddings - 1, device=sigma.device)
        if c.label is None:
            return dropped
        return c.label if c.present is None else torch.where(c.present, c.label, dropped)
