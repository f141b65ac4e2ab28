"""Square: random search with square windows, from the logits alone (Andriushchenko et al. 2020, arXiv 1912.00049).

Algorithm 1 there, for each sample: begin at a first guess x_best; for each query i = 1 ... N choose a window of side
h_i by the schedule of section 3.3, draw a change delta of that window, and keep x_best + delta if the margin grows. This
file holds the schedule, the first guesses and the changes (``Squares``: algorithm 2 for Linf; ``Pyramids``: algorithm 3
for L2, and for L1 as in Croce & Hein 2021, section 4). ``square_search.py`` asks the queries: several at once, and none
whose answer is known. Every sample has its own windows and signs, so that what happens to it depends on no other.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.attacks.context import AttackContext
from sfumato.attacks.norms import norm_of, per_sample, project_onto
from sfumato.attacks.registry import within_eps
from sfumato.attacks.square_search import Draft, Query, search
from sfumato.core.errors import InputError
from sfumato.core.streams import Streams

# Of 10,000 queries, after these the share of pixels in a window is halved (section 3.3 there).
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SHARE = 0.8  # of the pixels in the first window
_SALT = 4000


@within_eps("square")
def square(context: AttackContext, *, queries: int = 5000, share: float = SHARE) -> Tensor:
    """Random search for the largest margin; uses no gradient.

    Samples (B, H, W) and (B, d) count as one channel, and one channel of one row.

    Args: as every attack, see registry.py, and
        queries: for each sample, with the first guess.
        share: of the pixels, in the first window.

    Returns:
        (B, ...) in the box and the ball: the first adversarial point, or the one of largest margin.
    """
    if queries < 1 or not 0 < share <= 1:
        raise InputError(f"square with {queries} queries and a share of {share}: give 1 or more, and a share in (0, 1]")
    x, norm, result = context.x, context.norm, context.x.clone()
    if len(x) == 0:
        return result
    with context.classifier.ready(), torch.no_grad():
        rows = (~context.reached(context.answers(context.x))).nonzero().flatten()
        if len(rows) == 0:
            return result
        some = context[rows]
        images = some.x.reshape(len(rows), -1, *(x.shape[2:] if x.ndim == 4 else (1, *x.shape[1:])[-2:]))
        sides = [window_side(query, queries, share, images, norm) for query in range(queries - 1)]
        proposals = Squares(images, some.eps) if norm == "Linf" else Pyramids(images, some.eps, norm, sides)
        result[rows] = search(some, proposals, sides, some.streams(_SALT)).reshape(some.x.shape)
    return result


def window_side(query: int, queries: int, share: float, images: Tensor, norm: str) -> tuple[int, int]:
    """Height and width of the window at a query: for L2 and L1 odd, and at least 3 where the image allows it."""
    height, width = images.shape[2:]
    scaled = int(query / queries * 10000)
    share /= 2 ** bisect_left(HALVED_AFTER, scaled)
    side = max(round(math.sqrt(share * height * width)), 1)
    if norm != "Linf":
        side = max(side, 3) // 2 * 2 + 1
    return min(side, height), min(side, width)


def corner(numbers: Tensor, window: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """A place for the windows (m, 2) from random numbers (m, 2): top (m,) and left (m,)."""
    height, width = images.shape[2:]
    return numbers[:, 0] * (height - window[:, 0] + 1) >> 32, numbers[:, 1] * (width - window[:, 1] + 1) >> 32


# -- Linf -----------------------------------------------------------------------------------------------------------------


class Squares:
    """Linf (algorithm 2): the window's pixels go to ``x + eps`` or ``x - eps``, one sign a channel."""

    def __init__(self, images: Tensor, eps: Tensor) -> None:
        self.x, self.eps = images, eps  # (n, C, H, W) and (n,)
        change = per_sample(eps, images)
        self.rims = torch.stack([images - change, images + change], 1).clamp_(0, 1)  # (n, 2, C, H, W)
        self.kinds = images[0, 0].numel() * 2 ** images.shape[1]

    def keep(self, rows: Tensor) -> None:
        """Only these samples go on."""
        self.x, self.eps, self.rims = self.x[rows], self.eps[rows], self.rims[rows]

    def first(self, streams: Streams) -> Tensor:
        """Vertical stripes of +-eps."""
        _, channels, _, width = self.x.shape
        change = per_sample(self.eps, self.x) * streams.sign((channels, 1, width)).to(self.x.dtype)
        return project_onto(self.x, self.x + change, "Linf", self.eps)

    def name(self, query: Query) -> Tensor:
        """The number of each proposal among those of its window's size, (m,)."""
        top, left = corner(query.numbers[:, :2], query.window, self.x)
        channels, width = self.x.shape[1], self.x.shape[3]
        signs = ((query.numbers[:, 5:] >> 31) * 2 ** torch.arange(channels, device=top.device)).sum(1)
        return (top * width + left) * 2**channels + signs

    def area(self, query: Query) -> int:
        """Pixels that a draft names, in each channel."""
        return int(query.window.prod(1).amax())

    def draft(self, query: Query) -> Draft:
        """Which pixels, numbered through all channels, and to what: (m, A) and (m, A).

        Windows that are smaller than the largest of them name their last pixels repeatedly.
        """
        (channels, height, width), window = self.x.shape[1:], query.window  # (m, 2)
        top, left = corner(query.numbers[:, :2], window, self.x)
        rows, columns = window.amax(0).tolist() if len(window) else (1, 1)
        down = torch.minimum(torch.arange(rows, device=top.device), window[:, :1] - 1) + top[:, None]  # (m, rows)
        across = torch.minimum(torch.arange(columns, device=top.device), window[:, 1:] - 1) + left[:, None]
        pixel = (down[:, :, None] * width + across[:, None, :]).flatten(1)  # (m, rows columns)
        channel = torch.arange(channels, device=top.device)[:, None]
        places = channel * (height * width) + pixel[:, None]  # (m, C, rows columns)
        rim = 2 * query.row[:, None] + (query.numbers[:, 5:] >> 31)  # (m, C) which of all the lower and upper rims
        values = self.rims.reshape(-1, self.x[0].numel())[rim[:, :, None], places]
        return Draft(places.flatten(1), values.flatten(1))

    def changes(self, best: Tensor, query: Query, draft: Draft) -> Tensor:
        """(m,) bool: the proposal differs from the best point."""
        return (draft.values != best.flatten(1)[query.row[:, None], draft.places]).any(1)

    def proposed(self, best: Tensor, query: Query, draft: Draft) -> Tensor:
        """(m, C, H, W)."""
        own = best[query.row]
        return own.flatten(1).scatter_(1, draft.places, draft.values).reshape(own.shape)


# -- L2 and L1 ------------------------------------------------------------------------------------------------------------


class Pyramids:
    """L2 and L1 (algorithm 3): the change is taken out of one window, and spent on pyramids in another."""

    kinds = 0  # of proposals: too many to remember

    def __init__(self, images: Tensor, eps: Tensor, norm: str, sides: Sequence[tuple[int, int]]) -> None:
        self.x, self.eps, self.norm = images, eps, norm  # (n, C, H, W) and (n,)
        sizes = sorted(set(sides))
        most = [max((side[axis] for side in sizes), default=0) for axis in (0, 1)]
        self.pairs = images.new_zeros(len(sizes), 2, *most)  # upright and lying pairs, padded to one size
        for number, (rows, columns) in enumerate(sizes):
            self.pairs[number, 0, :rows, :columns] = pyramid_pair(rows, columns, norm).to(images)
            self.pairs[number, 1, :rows, :columns] = pyramid_pair(columns, rows, norm).T.to(images)
        self.pair_of = torch.tensor([0, *(sizes.index(side) for side in sides)], device=images.device)  # (queries,)

    def keep(self, rows: Tensor) -> None:
        """Only these samples go on."""
        self.x, self.eps = self.x[rows], self.eps[rows]

    def first(self, streams: Streams) -> Tensor:
        """A grid of pyramids of random sign."""
        count, channels, height, width = self.x.shape
        rows, columns = max(height // 5, 1), max(width // 5, 1)
        down, across = height // rows, width // columns
        signs = streams.sign((channels, down, across)).to(self.x.dtype)
        upright = pyramid_pair(rows, columns, self.norm).to(self.x)
        lying = pyramid_pair(columns, rows, self.norm).T.to(self.x)
        tile = torch.where(streams.sign()[:, None, None] > 0, upright, lying)  # (n, rows, columns)
        grid = signs[:, :, :, None, :, None] * tile[:, None, None, :, None, :]  # (n, C, down, rows, across, columns)
        change = torch.zeros_like(self.x)
        top, left = (height - down * rows) // 2, (width - across * columns) // 2
        change[:, :, top : top + down * rows, left : left + across * columns] = grid.reshape(
            count, channels, down * rows, across * columns
        )
        return self._scaled(self.x, change, self.eps)

    def name(self, query: Query) -> Tensor:
        """None are remembered."""
        return torch.zeros_like(query.row)

    def area(self, query: Query) -> int:
        """A proposal is made whole."""
        return self.x[0, 0].numel()

    def draft(self, query: Query) -> Draft:
        """Nothing is worth preparing."""
        return Draft(query.numbers[:, :0], query.numbers[:, :0])

    def changes(self, best: Tensor, query: Query, draft: Draft) -> Tensor:
        """(m,) bool: every proposal is taken for another point."""
        return torch.ones_like(query.row, dtype=torch.bool)

    def proposed(self, best: Tensor, query: Query, draft: Draft) -> Tensor:
        """(m, C, H, W)."""
        channels, height = self.x.shape[1:3]
        power = 2 if self.norm == "L2" else 1
        window, x, eps = query.window, self.x[query.row], self.eps[query.row]
        here, down, across = self._covers(*corner(query.numbers[:, :2], window, x), window)
        there = self._covers(*corner(query.numbers[:, 2:4], window, x), window)[0]
        tile = self.pairs[self.pair_of[query.number], query.numbers[:, 4] >> 31]  # (m, H', W')
        tile = tile.gather(1, down.clamp(0, tile.shape[1] - 1)[:, :, None].expand(-1, -1, tile.shape[2]))
        tile = tile.gather(2, across.clamp(0, tile.shape[2] - 1)[:, None, :].expand(-1, height, -1))  # (m, H, W)
        signs = (query.numbers[:, 5:] >> 31) * 2 - 1  # by the highest of 32 random bits
        fresh = tile[:, None] * here * signs[:, :, None, None].to(x.dtype)  # (m, C, H, W)
        change = best[query.row] - x
        sizes = change.abs() ** power
        freed = torch.where(here | there, sizes, 0.0).sum((2, 3), keepdim=True)  # (m, C, 1, 1)
        unspent = (per_sample(eps, x) ** power - sizes.sum((1, 2, 3), keepdim=True)).clamp_min(0)
        budget = unspent / channels + freed if power == 2 else unspent + freed * channels
        old = torch.where(here, change, 0.0)
        fresh = fresh + old / _length(old, power).clamp_min(1e-12)
        fresh = fresh / _length(fresh, power).clamp_min(1e-12) * budget ** (1 / power)
        change = torch.where(here, fresh, torch.where(there, 0.0, change))
        return self._scaled(x, change, eps)

    def _covers(self, top: Tensor, left: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(m, 1, H, W) bool: inside the windows; and the pixels' places in them, down (m, H) and across (m, W)."""
        height, width = self.x.shape[2:]
        down = torch.arange(height, device=top.device) - top[:, None]  # (m, H)
        across = torch.arange(width, device=top.device) - left[:, None]
        rows, columns = (down >= 0) & (down < window[:, :1]), (across >= 0) & (across < window[:, 1:])
        return (rows[:, :, None] & columns[:, None, :])[:, None], down, across

    def _scaled(self, x: Tensor, change: Tensor, eps: Tensor) -> Tensor:
        """``x`` plus the change at length ``eps``, inside the box."""
        if self.norm == "L1":
            return project_onto(x, x + change, self.norm, eps)
        length = norm_of(change, self.norm).clamp_min(torch.finfo(change.dtype).tiny)
        return (x + change * per_sample(eps / length, change)).clamp(0, 1)


def _length(change: Tensor, power: int) -> Tensor:
    """The L2 (power 2) or L1 norm over the pixels of each channel, (n, C, 1, 1)."""
    return (change.abs() ** power).sum((2, 3), keepdim=True) ** (1 / power)


def pyramid_pair(height: int, width: int, norm: str) -> Tensor:
    """Equation 2 of the paper: a pyramid in the upper half, its negative in the lower one, of norm 1: (h, w)."""
    upper = _pyramid(height // 2, width, norm)
    pair = torch.cat([upper, -_pyramid(height - height // 2, width, norm)])
    return pair / norm_of(pair[None], norm)


def _pyramid(height: int, width: int, norm: str) -> Tensor:
    """Nested rectangles about the centre, the k-th from the outside adding ``1 / (layers - k)^p``; of norm 1: (h, w).

    p is 2, and for L1 4 (Croce & Hein 2021, section 4): there a few large changes do more than many small ones.
    """
    found = torch.zeros(height, width)
    if height == 0:
        return found
    top, left = height // 2, width // 2
    for ring in range(max(top, left) + 1):
        weight = 1.0 / (ring + 1) ** (4 if norm == "L1" else 2)
        found[max(top - ring, 0) : top + ring + 1, max(left - ring, 0) : left + ring + 1] += weight
    return found / norm_of(found[None], norm)
