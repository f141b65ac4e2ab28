"""Random numbers that belong to a sample: they depend on (seed, the sample's id, how many it has drawn) alone.

So a result does not change with the batch size, the order, or which other samples have already left the batch, and it is
the same on every device: the numbers are a hash of those integers (two rounds of MurmurHash3's finaliser), not a state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF

Number = TypeVar("Number", int, Tensor)


def mix_seed(seed: int, index: int) -> int:
    """One seed from two numbers; neighbours are unrelated, and no two indices under 2^32 of one seed collide.

    (torch keeps 32 bits of a CPU generator's seed, so that seeds drawn at random would collide within 10^5 images.)
    """
    key = _scramble(seed & _MASK) ^ _scramble((seed >> 32 & _MASK) + 0x9E3779B9)
    return _scramble(_scramble(index ^ key) + key)


class Streams:
    """One stream of random numbers a sample.

    Args:
        seed: of the attack; attacks that share a seed and should differ give different ``salt``.
        ids: (B,) the samples' numbers, any integers from 0 to 2^32 - 1.
        salt: which of the streams of that seed.
        device: where the numbers are wanted.
    """

    def __init__(
        self, seed: int, ids: Tensor | Sequence[int], *, salt: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        first = mix_seed(seed, salt)
        numbers = [int(i) for i in ids]
        keys = [(mix_seed(seed, i), mix_seed(first, i)) for i in numbers]
        self.keys = torch.tensor(keys, dtype=torch.int64, device=device).reshape(-1, 2)  # (B, 2)
        self.drawn = torch.zeros(len(numbers), dtype=torch.int64, device=device)  # (B,) draws so far

    def __len__(self) -> int:
        return len(self.keys)

    def keep(self, rows: Tensor) -> Streams:
        """The streams of these rows (bool or indices), to go on where they are, apart from this object."""
        kept = object.__new__(Streams)
        kept.keys, kept.drawn = self.keys[rows], self.drawn[rows].clone()
        return kept

    def at(self, rows: Tensor, draw: Tensor) -> Streams:
        """The streams of these rows (m,), repeated or not, each about to make the draw of its number ``draw`` (m,)."""
        there = object.__new__(Streams)
        there.keys, there.drawn = self.keys[rows], draw
        return there

    def bits(self, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) int64, uniform over 0 ... 2^32 - 1."""
        count = math.prod(shape)
        a = _scramble(self.keys[:, 0] ^ _scramble(self.drawn + 0x9E3779B9))[:, None]  # (B, 1)
        b = _scramble(self.keys[:, 1] + _scramble(self.drawn ^ 0x7F4A7C15))[:, None]
        self.drawn = self.drawn + 1
        index = torch.arange(count, dtype=torch.int64, device=self.keys.device)  # (D,)
        return _scramble(_scramble(index + a) ^ b).reshape(len(self), *shape)

    def uniform(self, shape: Sequence[int] = (), low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B, *shape) float32, uniform over [low, high), in 2^24 even steps."""
        return low + (high - low) * (self.bits(shape) >> 8).to(torch.float32) * 2.0**-24

    def normal(self, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) float32, standard normal (by the inverse of the distribution function, |z| < 5.5)."""
        number = torch.float32 if self.keys.device.type == "mps" else torch.float64  # which mps does not have
        centred = ((self.bits(shape) >> 8).to(number) + 0.5) * 2.0**-23 - 1
        return (math.sqrt(2) * torch.erfinv(centred)).to(torch.float32)

    def sign(self, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) float32, -1 or 1."""
        return ((self.bits(shape) >> 31) * 2 - 1).to(torch.float32)

    def integers(self, high: int | Tensor, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) int64, uniform over 0 ... high - 1 (high below 2^31, a number or a tensor that broadcasts)."""
        return self.bits(shape) * high >> 32


def streams_for(x: Tensor, seed: int, ids: Tensor | Sequence[int] | None, salt: int = 0) -> Streams:
    """The streams of a batch ``x`` (B, ...): of its ``ids``, or of 0 ... B - 1."""
    return Streams(seed, range(len(x)) if ids is None else ids, salt=salt, device=x.device)


def _scramble(x: Number) -> Number:
    """MurmurHash3's finaliser, a bijection of 32-bit numbers (products of int64 tensors wrap; their low 32 bits are right)."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)
