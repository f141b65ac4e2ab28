"""Square: random search with square windows, from the logits alone (Andriushchenko et al. 2020, arXiv 1912.00049).

Each query changes one window of each sample (for L2 and L1, moves change from one window to another) and is kept if the
margin grows. Windows shrink on a fixed schedule. Every sample has its own windows and signs, so that what happens to it
depends on no other. A proposal whose answer is known (it changes nothing, or was refused before and nothing has changed
since) counts as a query, but is not sent through the classifier: the result is the same for any deterministic one.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.attacks.batching import answer_batch, answers, checked
from sfumato.attacks.losses import margin, reached
from sfumato.attacks.norms import check_norm, norm_of, per_sample, project_onto
from sfumato.attacks.registry import ATTACKS
from sfumato.core.errors import InputError
from sfumato.core.streams import Streams, streams_for

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

# Of 10,000 queries, after these the share of pixels in a window is halved (section 3.3 there).
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SHARE = 0.8  # of the pixels in the first window
_SALT = 4000
_MOST_AT_ONCE = 64  # queries of one sample in a pass
_ENTRIES = 2**24  # of all proposals in a pass
_PLACES = 2**21  # pixels of all windows that are looked at together
_MOST_REMEMBERED = 2**16  # distinct proposals of one window size, above which refusals are not remembered


@ATTACKS.add("square")
def square(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    eps: float | Tensor = 8 / 255,
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    queries: int = 5000,
    share: float = SHARE,
    batch_size: int | None = None,
) -> Tensor:
    """Random search for the largest margin; uses no gradient.

    Args:
        classifier: to attack.
        x: (B, C, H, W) pixels in [0, 1]; (B, H, W) and (B, d) count as one channel, and one channel of one row.
        y: (B,) true labels, or with ``targeted`` the labels wanted.
        norm: Linf, L2 or L1.
        eps: radius, a float or (B,).
        targeted: as above.
        seed, ids: sample i's random numbers depend on seed and ids[i] (default i) alone.
        queries: for each sample, with the first guess.
        share: of the pixels, in the first window.
        batch_size: samples in a pass; the classifier's own by default.

    Returns:
        (B, ...) in the box and the ball: the first adversarial point, or the one of largest margin.
    """
    check_norm(norm, ("Linf", "L2", "L1"), "square")
    if queries < 1 or not 0 < share <= 1:
        raise InputError(f"square with {queries} queries and a share of {share}: give 1 or more, and a share in (0, 1]")
    x, y, ids = checked(x, y, ids, eps)
    if len(x) == 0:
        return x.clone()
    with classifier.ready(), torch.no_grad():
        hit = reached(answers(classifier, x, batch_size), y, targeted)
        rows = (~hit).nonzero().flatten()
        result = x.clone()
        if len(rows) == 0:
            return result
        images = x[rows].reshape(len(rows), -1, *(x.shape[2:] if x.ndim == 4 else (1, *x.shape[1:])[-2:]))
        streams = streams_for(images, seed, ids[rows], _SALT)
        radius = per_sample(eps, x).reshape(-1)[rows]
        search = _Search(classifier, x[rows], images, y[rows], norm, radius, targeted, streams, batch_size)
        result[rows] = search.run(queries, share)
    return result


def window_side(query: int, queries: int, share: float, height: int, width: int, norm: str) -> tuple[int, int]:
    """Height and width of the window at a query: for L2 and L1 odd, and at least 3 where the image allows it."""
    scaled = int(query / queries * 10000)
    share /= 2 ** bisect_left(HALVED_AFTER, scaled)
    side = max(round(math.sqrt(share * height * width)), 1)
    if norm != "Linf":
        side = max(side, 3) // 2 * 2 + 1
    return min(side, height), min(side, width)


class _Search:
    """The state of the search: the samples that still stand, one row each, every one at a query of its own.

    While nothing is accepted, all proposals start from the same point, so several queries of a sample are asked in one
    pass. The first that is better is taken and those after it are proposed anew: the path is the same as one by one. The
    longer nothing was accepted the more are asked at once, so that few are in vain, and never fewer than fill a batch.
    """

    def __init__(
        self,
        classifier: Classifier,
        samples: Tensor,
        images: Tensor,
        y: Tensor,
        norm: str,
        radius: Tensor,
        targeted: bool,
        streams: Streams,
        batch_size: int | None,
    ) -> None:
        self.classifier, self.norm, self.targeted, self.batch_size = classifier, norm, targeted, batch_size
        self.shape = samples.shape[1:]  # that the classifier sees
        self.result = images.clone()
        self.rows = torch.arange(len(images), device=images.device)
        self.x, self.y, self.radius, self.streams = images, y, radius, streams
        self.best = images
        self.rims = images[:0]  # (n, 2, C, H, W) for Linf, the lowest and the highest point
        if norm == "Linf":
            change = per_sample(radius, images)
            self.rims = torch.stack([images - change, images + change], 1).clamp_(0, 1)
        self.height = images.new_zeros(len(images))  # (n,) the margin at best
        self.query = torch.ones_like(self.rows)  # (n,) the next one
        self.accepted = torch.zeros_like(self.rows)  # (n,) the query of the last improvement
        kinds = images[0, 0].numel() * 2 ** images.shape[1]
        remembered = kinds if norm == "Linf" and kinds <= _MOST_REMEMBERED else 0
        self.refused = torch.zeros(len(images), remembered, dtype=torch.bool, device=images.device)  # (n, proposals)

    def run(self, queries: int, share: float) -> Tensor:
        """All queries; the first adversarial point of each sample, or its best."""
        height, width = self.x.shape[2:]
        windows = [window_side(query - 1, queries, share, height, width, self.norm) for query in range(1, queries)]
        self.windows = torch.tensor([(0, 0), *windows], device=self.x.device)  # (queries, 2)
        changes = [i for i in range(1, queries) if i == 1 or windows[i - 1] != windows[i - 2]]
        ends = torch.tensor([*changes, queries], device=self.x.device)
        if self.norm != "Linf":
            self._prepare_pyramids(sorted(set(windows)))
        self.best = self._first()
        self.height, hit = self._ask(self.best, self.y)
        self._leave(hit)
        while len(self.rows):
            upper = ends[torch.searchsorted(ends, self.query, right=True).clamp_max(len(ends) - 1)]
            most = max(1, min(_MOST_AT_ONCE, _ENTRIES // self.x.numel()))
            # Where the classifier is small, as many cost no more than one.
            fit = answer_batch(self.classifier, self.x, self.batch_size) // len(self.rows)
            count = ((self.query - self.accepted) // 6).clamp(max(1, min(most, fit)), most)
            self._advance(torch.minimum(count, upper - self.query))
            ended = self.query == upper[self.stayed]
            if self.refused.shape[1] and bool(ended.any()):
                self.refused[ended] = False  # the next window has another size
            done = self.query >= queries
            if bool(done.any()):
                self.result[self.rows[done]] = self.best[done]
                self._keep(~done)
        return self.result.reshape(-1, *self.shape)

    def _advance(self, count: Tensor) -> None:
        """Ask the next ``count`` (n,) queries of each sample, up to its first improvement."""
        some = torch.arange(len(self.rows), device=count.device).repeat_interleave(
            count
        )  # (m,) the row of each proposal
        offset = torch.arange(len(some), device=count.device) - (count.cumsum(0) - count)[some]
        query = self.query[some] + offset  # (m,)
        numbers = self.streams.at(some, query).bits((5 + self.x.shape[1],))  # (m, 5 + C)
        known, name = self._known(some, query, numbers)
        height = self.height.new_full((len(some),), -torch.inf)
        hit = torch.zeros_like(known)
        unknown = (~known).nonzero().flatten()
        batch = answer_batch(self.classifier, self.x, self.batch_size)
        area = self.x[0, 0].numel() if self.norm != "Linf" else int(self.windows[query].prod(1).amax())
        for part in unknown.split(max(batch, _PLACES // (self.x.shape[1] * area))):
            squares = None
            if self.norm == "Linf":
                places, values = self._squares(some[part], query[part], numbers[part])
                changes = (values != self.best.flatten(1)[some[part, None], places]).any(1)
                part, squares = part[changes], (places[changes], values[changes])
            # Proposals are made for one pass at a time and then forgotten, so that they stay in a CPU's cache.
            for few in torch.arange(len(part), device=count.device).tensor_split(max(1, -(-len(part) // batch))):
                which = part[few]
                proposal = self._proposed(
                    some[which], query[which], numbers[which], squares and tuple(t[few] for t in squares)
                )
                height[which], hit[which] = self._ask(proposal, self.y[some[which]])
        better = hit | (height > self.height[some])
        # The first improvement of each sample: proposals of one row are in the order of their queries.
        place = torch.arange(len(some), device=count.device)[better]
        first = torch.full_like(self.query, len(some)).scatter_reduce(0, some[better], place, "amin")  # (n,)
        taken = first < len(some)  # (n,)
        chosen = first[taken]
        self.best, self.height = self.best.clone(), self.height.clone()
        self.best[taken] = self._proposed(some[chosen], query[chosen], numbers[chosen])
        self.height[taken] = height[chosen]
        self.query = self.query + count
        self.query[taken] = query[chosen] + 1
        self.accepted[taken] = self.query[taken]
        if self.refused.shape[1]:
            self.refused[some, name] = True
            self.refused[taken] = False
        fallen = torch.zeros_like(taken)
        fallen[taken] = hit[chosen]
        self._leave(fallen)

    def _ask(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The margins that the search raises, and whether the samples are fooled: (n,) and (n,)."""
        if len(x) == 0:
            return self.height[:0], torch.zeros(0, dtype=torch.bool, device=x.device)
        logits = answers(self.classifier, x.reshape(-1, *self.shape), self.batch_size)
        height = margin(logits, y) * (-1 if self.targeted else 1)
        return height.to(x.dtype), reached(logits, y, self.targeted)

    def _leave(self, hit: Tensor) -> None:
        """The samples that are fooled go, with the point that did it."""
        self.stayed = ~hit
        if bool(hit.any()):
            self.result[self.rows[hit]] = self.best[hit]
            self._keep(~hit)

    def _keep(self, stay: Tensor) -> None:
        self.rows, self.x, self.y, self.radius = self.rows[stay], self.x[stay], self.y[stay], self.radius[stay]
        self.best, self.height, self.refused = self.best[stay], self.height[stay], self.refused[stay]
        self.rims = self.rims[stay] if self.norm == "Linf" else self.rims
        self.query, self.accepted, self.streams = self.query[stay], self.accepted[stay], self.streams.keep(stay)

    def _first(self) -> Tensor:
        """Linf: vertical stripes of +-eps. L2 and L1: a grid of pyramids of random sign."""
        count, channels, height, width = self.x.shape
        if self.norm == "Linf":
            change = per_sample(self.radius, self.x) * self.streams.sign((channels, 1, width)).to(self.x.dtype)
            return project_onto(self.x, self.x + change, self.norm, self.radius)
        rows, columns = max(height // 5, 1), max(width // 5, 1)
        down, across = height // rows, width // columns
        signs = self.streams.sign((channels, down, across)).to(self.x.dtype)
        upright = _pyramid_pair(rows, columns, self.norm).to(self.x)
        lying = _pyramid_pair(columns, rows, self.norm).T.to(self.x)
        tile = torch.where(self.streams.sign()[:, None, None] > 0, upright, lying)  # (n, rows, columns)
        grid = signs[:, :, :, None, :, None] * tile[:, None, None, :, None, :]  # (n, C, down, rows, across, columns)
        change = torch.zeros_like(self.x)
        top, left = (height - down * rows) // 2, (width - across * columns) // 2
        change[:, :, top : top + down * rows, left : left + across * columns] = grid.reshape(
            count, channels, down * rows, across * columns
        )
        return self._scaled(self.x, change, self.radius)

    def _scaled(self, x: Tensor, change: Tensor, radius: Tensor) -> Tensor:
        """``x`` plus the change at length eps, inside the box."""
        if self.norm == "L1":
            return project_onto(x, x + change, self.norm, radius)
        length = norm_of(change, self.norm).clamp_min(torch.finfo(change.dtype).tiny)
        return (x + change * per_sample(radius / length, change)).clamp(0, 1)

    def _corner(self, numbers: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        """A place for the windows (m, 2) from random numbers (m, 2): top (m,) and left (m,)."""
        height, width = self.x.shape[2:]
        return numbers[:, 0] * (height - window[:, 0] + 1) >> 32, numbers[:, 1] * (width - window[:, 1] + 1) >> 32

    def _covers(self, top: Tensor, left: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(m, 1, H, W) bool: inside the windows; and the pixels' places in them, down (m, H) and across (m, W)."""
        height, width = self.x.shape[2:]
        down = torch.arange(height, device=top.device) - top[:, None]  # (m, H)
        across = torch.arange(width, device=top.device) - left[:, None]
        rows, columns = (down >= 0) & (down < window[:, :1]), (across >= 0) & (across < window[:, 1:])
        return (rows[:, :, None] & columns[:, None, :])[:, None], down, across

    def _known(self, some: Tensor, query: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a proposal was refused since the last improvement, (m,) bool; and its name, (m,)."""
        if not self.refused.shape[1]:
            return torch.zeros_like(some, dtype=torch.bool), torch.zeros_like(some)
        top, left = self._corner(numbers[:, :2], self.windows[query])
        channels, width = self.x.shape[1], self.x.shape[3]
        signs = ((numbers[:, 5:] >> 31) * 2 ** torch.arange(channels, device=top.device)).sum(1)
        name = (top * width + left) * 2**channels + signs
        return self.refused[some, name], name

    def _proposed(
        self, some: Tensor, query: Tensor, numbers: Tensor, squares: tuple[Tensor, ...] | None = None
    ) -> Tensor:
        """The proposals (m, C, H, W); for Linf by their ``squares``, where they are known."""
        if self.norm != "Linf":
            return self._moved(some, query, numbers)
        places, values = self._squares(some, query, numbers) if squares is None else squares
        best = self.best[some]
        return best.flatten(1).scatter_(1, places, values).reshape(best.shape)

    def _squares(self, some: Tensor, query: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Linf (algorithm 2): the window's pixels go to ``x + eps`` or ``x - eps``, one sign a channel.

        Returns which pixels, numbered through all channels, and to what: (m, A) and (m, A). Windows that are smaller
        than the largest of them name their last pixels repeatedly.
        """
        (channels, height, width), window = self.x.shape[1:], self.windows[query]  # (m, 2)
        top, left = self._corner(numbers[:, :2], window)
        rows, columns = window.amax(0).tolist() if len(window) else (1, 1)
        down = torch.minimum(torch.arange(rows, device=top.device), window[:, :1] - 1) + top[:, None]  # (m, rows)
        across = torch.minimum(torch.arange(columns, device=top.device), window[:, 1:] - 1) + left[:, None]
        pixel = (down[:, :, None] * width + across[:, None, :]).flatten(1)  # (m, rows columns)
        channel = torch.arange(channels, device=top.device)[:, None]
        places = channel * (height * width) + pixel[:, None]  # (m, C, rows columns)
        rim = 2 * some[:, None] + (numbers[:, 5:] >> 31)  # (m, C) which of all the lower and upper rims
        values = self.rims.reshape(-1, self.x[0].numel())[rim[:, :, None], places]
        return places.flatten(1), values.flatten(1)

    def _prepare_pyramids(self, windows: list[tuple[int, int]]) -> None:
        """Upright and lying pairs for every window that will come, padded to one size: (windows, 2, H', W')."""
        height, width = max(window[0] for window in windows), max(window[1] for window in windows)
        self.tiles = self.x.new_zeros(len(windows), 2, height, width)
        self.tile_of = torch.zeros(len(self.windows), dtype=torch.int64, device=self.x.device)  # (queries,)
        for number, (rows, columns) in enumerate(windows):
            self.tiles[number, 0, :rows, :columns] = _pyramid_pair(rows, columns, self.norm).to(self.x)
            self.tiles[number, 1, :rows, :columns] = _pyramid_pair(columns, rows, self.norm).T.to(self.x)
            self.tile_of[(self.windows == torch.tensor((rows, columns), device=self.x.device)).all(1)] = number

    def _moved(self, some: Tensor, query: Tensor, numbers: Tensor) -> Tensor:
        """L2 and L1 (algorithm 3): take the change out of one window, and spend it on pyramids in another."""
        channels, height = self.x.shape[1:3]
        power = 2 if self.norm == "L2" else 1
        window, x, radius = self.windows[query], self.x[some], self.radius[some]
        here, down, across = self._covers(*self._corner(numbers[:, :2], window), window)
        there = self._covers(*self._corner(numbers[:, 2:4], window), window)[0]
        tile = self.tiles[self.tile_of[query], numbers[:, 4] >> 31]  # (m, H', W')
        tile = tile.gather(1, down.clamp(0, tile.shape[1] - 1)[:, :, None].expand(-1, -1, tile.shape[2]))
        tile = tile.gather(2, across.clamp(0, tile.shape[2] - 1)[:, None, :].expand(-1, height, -1))  # (m, H, W)
        fresh = tile[:, None] * here * _signs(numbers[:, 5:])[:, :, None, None].to(x.dtype)  # (m, C, H, W)
        change = self.best[some] - x
        sizes = change.abs() ** power
        freed = torch.where(here | there, sizes, 0.0).sum((2, 3), keepdim=True)  # (m, C, 1, 1)
        unspent = (per_sample(radius, x) ** power - sizes.sum((1, 2, 3), keepdim=True)).clamp_min(0)
        budget = unspent / channels + freed if power == 2 else unspent + freed * channels
        old = torch.where(here, change, 0.0)
        fresh = fresh + old / _length(old, power).clamp_min(1e-12)
        fresh = fresh / _length(fresh, power).clamp_min(1e-12) * budget ** (1 / power)
        change = torch.where(here, fresh, torch.where(there, 0.0, change))
        return self._scaled(x, change, radius)


def _signs(numbers: Tensor) -> Tensor:
    """-1 or 1 by the highest of 32 random bits."""
    return (numbers >> 31) * 2 - 1


def _length(change: Tensor, power: int) -> Tensor:
    """The L2 (power 2) or L1 norm over the pixels of each channel, (n, C, 1, 1)."""
    return (change.abs() ** power).sum((2, 3), keepdim=True) ** (1 / power)


def _pyramid_pair(height: int, width: int, norm: str) -> Tensor:
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
