"""An attack on the smoothed classifier, by exact gradients through the denoiser: what a certificate must survive.

PGD in L2 against the mean probability over a number of noise draws that are the same in every step, "SmoothAdv" of
Salman et al. 2019 (arXiv 1906.04584, equation 6): the objective is ``log (1 - m) - log m`` with
``m = mean_k softmax(f(D(x + sigma e_k)))_y``, which rises as their ``- log m`` does and keeps its digits where m is
almost 1. What it finds counts as fooled only where fresh draws show it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato.attacks.ascent import ascend
from sfumato.attacks.batching import answer_batch, batch_for
from sfumato.core.errors import InputError
from sfumato.core.streams import Streams
from sfumato.defences.smoothing.certify import ATTACK, CHECK, Denoise, base, check_pixels, draw_noise, streams, votes
from sfumato.defences.smoothing.sequential_test import Bets, SequentialTest

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

SURE = 0.001  # error of "the smoothed classifier says something else here"
_NAMING = 16  # draws that say which class that would be


class Attacked(NamedTuple):
    """What an attack on the smoothed classifier found."""

    fell: Tensor  # (B,) the smallest of the radii at which it is fooled, 0 where it is wrong unattacked, inf for none
    x_adv: Tensor  # (B, C, H, W) the image that fools it; where there is none, the best attempt at the largest radius


def attack_smoothed(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    sigma: float,
    radii: Sequence[float],
    denoise: Denoise | None = None,
    steps: int = 20,
    draws: int = 16,
    check: int = 1000,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Attacked:
    """Fool the smoothed classifier within growing L2 balls.

    Args:
        classifier, x, sigma, denoise, seed, ids, batch_size, progress: as in ``certify``; the noise is another.
        y: (B,) true labels.
        radii: L2 sizes, gone through from the smallest; each begins where the last one ended.
        steps: gradients at each radius.
        draws: of noise, over which a gradient is taken.
        check: fresh draws at most, which must show that another class is commoner than y (with an error of 0.001) before
            an image counts as fooled. So the accuracy under this attack is an upper bound.

    Raises:
        InputError: as ``certify``; a denoiser or classifier through which no gradient flows.
    """
    wanted = sorted(set(radii))
    if not wanted or not all(0 < radius < float("inf") for radius in wanted):
        raise InputError("an attack on a smoothed classifier needs radii: give L2 sizes over 0")
    if steps < 1 or draws < 1 or check <= _NAMING:
        raise InputError(f"steps {steps}, draws {draws} and check {check}: give 1, 1 and {_NAMING + 1} or more")
    x = check_pixels(x)
    y = y.to(x.device, torch.int64)
    noise = streams(seed, ids, x)
    fell, best = x.new_full((len(x),), torch.inf), x.clone()
    batch = batch_size or answer_batch(classifier, x, None)
    at_once = max(1, (batch_size or batch_for(classifier, x, None)) // draws)
    with classifier.ready():
        for start in range(0, len(x), at_once):
            rows = torch.arange(start, min(start + at_once, len(x)))
            standing = rows[~_fooled(classifier, x, y, sigma, denoise, noise, rows, check, batch)]
            fell[rows] = 0.0
            fell[standing] = torch.inf
            for radius in wanted:
                if not len(standing):
                    break
                best[standing] = _climb(
                    classifier, x, y, best, sigma, denoise, noise, standing, radius, steps, draws
                )  # fmt: skip
                fooled = _fooled(classifier, best, y, sigma, denoise, noise, standing, check, batch)
                fell[standing[fooled]] = radius
                standing = standing[~fooled]
            if progress is not None:
                progress(int(rows[-1]) + 1, len(x))
    return Attacked(fell, best)


def soft_loss(
    classifier: Classifier, x: Tensor, y: Tensor, e: Tensor, *, sigma: float, denoise: Denoise | None = None
) -> Tensor:
    """``log (1 - m) - log m`` of the mean probability m of class y over the draws ``e``: (B,), differentiable in ``x``.

    Args:
        x: (B, C, H, W).
        y: (B,).
        e: (B, K, C, H, W) standard normal numbers.
    """
    noisy = (x[:, None] + sigma * e).flatten(0, 1)  # (B K, C, H, W)
    scores = base(classifier, noisy, sigma, denoise).log_softmax(1)  # (B K, classes)
    labels = y.repeat_interleave(e.shape[1])[:, None]
    right = scores.gather(1, labels).view(e.shape[:2])  # (B, K)
    wrong = scores.scatter(1, labels, -torch.inf).logsumexp(1).view(e.shape[:2])
    return wrong.logsumexp(1) - right.logsumexp(1)  # the mean's two counts cancel


def _climb(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    begin: Tensor,
    sigma: float,
    denoise: Denoise | None,
    noise: Streams,
    rows: Tensor,
    radius: float,
    steps: int,
    draws: int,
) -> Tensor:
    """The point of highest loss on the way, for the images of these rows."""
    which, number = rows.repeat_interleave(draws), torch.arange(draws).repeat(len(rows))
    e = draw_noise(noise, x, which, ATTACK, number).view(len(rows), draws, *x.shape[1:])
    here, labels = x[rows], y[rows]
    found, highest = begin[rows].clone(), x.new_full((len(rows),), -torch.inf)

    def slope(x_adv: Tensor, index: int) -> Tensor:
        """The gradient, but after the last step; the points of highest loss are kept."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x_adv.clone().requires_grad_()
            loss = soft_loss(classifier, leaf, labels, e, sigma=sigma, denoise=denoise)
            if not loss.requires_grad:
                raise InputError("no gradient flows through the classifier or the denoiser: attack it without one")
            gradient = torch.autograd.grad(loss.sum(), leaf)[0].nan_to_num(0.0, 0.0, 0.0) if index < steps else x_adv
        better = loss.detach().to(x.device) > highest
        found[better], highest[better] = x_adv[better], loss.detach().to(highest)[better]
        return gradient

    slope(ascend(here, slope, norm="L2", eps=radius, steps=steps, begin=begin[rows]), steps)
    return found


def _fooled(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    sigma: float,
    denoise: Denoise | None,
    noise: Streams,
    rows: Tensor,
    check: int,
    batch: int,
) -> Tensor:
    """(m,) bool: among fresh draws another class is commoner than y, beyond doubt.

    The first few draws name the rival; the others, as far as they say y or the rival, are bet on (betting.py).
    """
    bets = {int(row): Bets(SequentialTest.of((0.5,), SURE, check)) for row in rows}
    rivals: dict[int, int] = {}
    drawn, open_ = 0, list(bets)
    while open_ and drawn < check:
        count = _NAMING if not rivals else min(check - drawn, max(1, batch // len(open_)))
        which = torch.tensor(open_).repeat_interleave(count)
        numbers = torch.arange(drawn, drawn + count).repeat(len(open_))
        parts = [
            votes(classifier, x, sigma, denoise, noise, w, CHECK, k)
            for w, k in zip(which.split(batch), numbers.split(batch), strict=True)
        ]
        said = dict(zip(open_, torch.cat(parts).view(len(open_), count).cpu().numpy(), strict=True))
        drawn += count
        if not rivals:
            rivals = {row: _commonest(labels, besides=int(y[row])) for row, labels in said.items()}
            open_ = [row for row in open_ if rivals[row] >= 0]  # the others saw nothing but y
            continue
        for row, labels in said.items():
            either = labels[(labels == int(y[row])) | (labels == rivals[row])]
            if len(either) and bets[row].add(either == rivals[row]):
                open_.remove(row)
    return torch.tensor([bool(bet.verdict[0] == 1) for bet in bets.values()])


def _commonest(labels: np.ndarray, besides: int) -> int:
    others = np.bincount(labels[labels != besides])
    return int(others.argmax()) if len(others) else -1
