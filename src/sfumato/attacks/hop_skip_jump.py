"""HopSkipJump (Chen et al. 2020, arXiv 1904.02144): only the predicted labels are used, no logits and no gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.attacks.batching import checked
from sfumato.attacks.closest import Closest, closest_adversarial, pull_back
from sfumato.attacks.norms import check_norm, norm_of, per_sample, steepest
from sfumato.attacks.registry import ATTACKS
from sfumato.core.errors import InputError
from sfumato.core.streams import Streams, mix_seed, streams_for

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

STARTS = 10  # images of uniform noise, the closest of which is the start
GRIDS = (2, 3, 4, 6, 8)  # tiles a side of the patterns tried after them
TRIALS = 100  # images tried until there is any start
START_ROUNDS = 7  # of their bisection
MOST_EVALUATIONS = 10_000  # of one gradient estimate
FIRST_RADIUS = 0.1  # of the first estimate, as a share of the pixel range
WIDER = 10  # times the paper's radius: more of the boundary, and of its normal, against the bisection's error
MEMORY = {
    "L2": 0.0,
    "Linf": 0.7,
}  # weight of the last direction in the next; the sign that Linf takes gains by less noise
NUMBERS_AT_ONCE = 2**24  # pixels in one batch of queries


class Oracle:
    """Answers one question about points of some rows: are they adversarial? Labels are all it looks at."""

    def __init__(self, classifier: Classifier, y: Tensor, targeted: bool) -> None:
        self.classifier, self.y, self.targeted = classifier, y, targeted

    def __call__(self, points: Tensor, rows: Tensor) -> Tensor:
        """(B, ...) points of the samples ``rows`` (B,) -> (B,) bool."""
        return (self.classifier.predict(points) == self.y[rows]) == self.targeted


@ATTACKS.add("hop-skip-jump")
def hop_skip_jump(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "L2",
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    steps: int = 32,
    evaluations: int = 100,
    starts: Tensor | None = None,
) -> Tensor:
    """The closest adversarial example in L2 or Linf that labels alone lead to (algorithm 2 of the paper).

    Begins at an image that is adversarial, goes back to the boundary by bisection towards ``x``, estimates the
    boundary's normal from the labels of random points around, and jumps along it; each jump is halved until it stays
    adversarial. The points lie ten times as far out as in the paper, and for Linf the normal is a running mean: both found
    smaller perturbations at equal queries. A sample costs about ``evaluations * steps^1.5 * 2 / 3`` forward passes.

    Args:
        x: (B, ...) pixels in [0, 1].
        y: (B,) true labels, or the wanted ones when ``targeted``.
        norm: "L2" or "Linf".
        seed: of the random points; each sample has its own stream by its number in ``ids`` (default 0 ... B - 1).
        steps: jumps.
        evaluations: labels asked for in the first gradient estimate; that of step t takes sqrt(t) times as many.
        starts: (B, ...) an adversarial image for each sample, in [0, 1]: for targeted attacks, an image of the wanted
            class. The closest of it and of 9 images of noise is taken (of 10 without it; up to 100 are tried
            until one is adversarial).

    Returns:
        (B, ...) in [0, 1]: the closest adversarial example found, or ``x`` where there was none (no start was found).

    Raises:
        InputError: another norm, or ``starts`` of another shape than ``x``.
    """
    check_norm(norm, ("L2", "Linf"), "hop-skip-jump")
    if starts is not None and starts.shape != x.shape:
        raise InputError(f"starts have shape {tuple(starts.shape)}: give one for each sample, {tuple(x.shape)}")
    _, _, numbers = checked(x, y, ids)

    def search(x_todo: Tensor, y_todo: Tensor, which: Tensor) -> Tensor:
        adversarial = Oracle(classifier, y_todo, targeted)
        own = numbers[which]
        given = None if starts is None else starts.to(x_todo)[which]
        # Two sets of streams: how many starts were drawn depends on the batch, and what follows must not.
        start, rows = _starts(adversarial, x_todo, streams_for(x_todo, seed, own, salt=1), given, norm)
        closest = Closest(x_todo, norm)
        if not len(rows):
            return closest.x_adv
        streams = [torch.Generator().manual_seed(mix_seed(seed, int(i))) for i in own[rows]]
        return _walk(adversarial, closest, start, rows, streams, steps, evaluations)

    return closest_adversarial(classifier, x, y, targeted, search)


def _starts(adversarial: Oracle, x: Tensor, streams: Streams, given: Tensor | None, norm: str) -> tuple[Tensor, Tensor]:
    """The closest of a few adversarial images after a short bisection, (B, ...), and the rows (N,) that have one."""
    closest = Closest(x, norm)
    for trial in range(TRIALS):
        # Drawn for all, so that streams do not depend on who is left.
        noise = streams.uniform(x.shape[1:]).to(x)
        if trial >= STARTS:
            # The classifier may have one word for all noise; coarse black and white patterns look like more things.
            noise = _coarse(noise, GRIDS[trial % len(GRIDS)]).round()
        if trial == 0 and given is not None:
            noise = given
        rows = torch.nonzero((closest.size == torch.inf) | (trial < STARTS)).flatten()
        if not len(rows):
            break
        rows = rows[adversarial(noise[rows], rows)]
        if not len(rows):
            continue
        ends = pull_back(x[rows], noise[rows], norm, functools.partial(adversarial, rows=rows), START_ROUNDS)
        closest.offer(ends, torch.ones_like(rows, dtype=torch.bool), rows)
    return closest.x_adv, torch.nonzero(closest.size < torch.inf).flatten()


def _coarse(noise: Tensor, grid: int) -> Tensor:
    """Noise images (B, C, H, W) of ``grid * grid`` flat tiles; anything but images as it is."""
    if noise.ndim != 4:
        return noise
    return F.interpolate(noise[..., :grid, :grid], size=noise.shape[2:], mode="nearest-exact")


def _walk(
    adversarial: Oracle,
    closest: Closest,
    start: Tensor,
    rows: Tensor,
    streams: list[torch.Generator],
    steps: int,
    evaluations: int,
) -> Tensor:
    norm, x, values = closest.norm, closest.x[rows], start[0].numel()
    # The paper's bisection tolerance theta, relative to the distance (section 3.2).
    theta = values**-1.5 if norm == "L2" else values**-2.0
    rounds = math.ceil(-math.log2(max(theta, 1e-7)))
    ask = functools.partial(adversarial, rows=rows)
    point = pull_back(x, start[rows], norm, ask, rounds)
    normal = torch.zeros_like(point)
    for step in range(1, steps + 1):
        distance = norm_of(point - x, norm)  # (N,)
        radius = WIDER * distance * theta * (math.sqrt(values) if norm == "L2" else values)
        radius = torch.full_like(distance, FIRST_RADIUS) if step == 1 else radius.clamp(min=1e-6)
        count = min(int(evaluations * math.sqrt(step)), MOST_EVALUATIONS)
        estimate = _normal(adversarial, point, rows, streams, radius, count, norm)
        normal = steepest(estimate + MEMORY[norm] * normal, "L2")
        direction = normal if norm == "L2" else normal.sign()
        point = _jump(adversarial, point, direction, rows, distance / math.sqrt(step))
        point = pull_back(x, point, norm, ask, rounds)
        closest.offer(point, torch.ones_like(rows, dtype=torch.bool), rows)
    return closest.x_adv


def _normal(
    adversarial: Oracle,
    point: Tensor,
    rows: Tensor,
    streams: list[torch.Generator],
    radius: Tensor,
    count: int,
    norm: str,
) -> Tensor:
    """(N, ...) unit vectors into the adversarial side: the paper's equation 16, with the labels' mean taken off."""
    estimates = []
    values = point[0].numel()
    at_once = max(1, NUMBERS_AT_ONCE // (count * values))
    for part in torch.arange(len(rows), device=rows.device).split(at_once):
        # torch's generators, one a sample: these are too many numbers for the slower hash of streams.py.
        draw = torch.randn if norm == "L2" else torch.rand
        drawn = [draw((count, values), generator=streams[i]) for i in part.tolist()]
        shifts = torch.stack(drawn).to(point)  # (n, N, d)
        shifts = shifts if norm == "L2" else 2 * shifts - 1  # as the authors draw them
        shifts = shifts / torch.linalg.vector_norm(shifts, dim=2, keepdim=True)
        centre, reach = point[part].flatten(1)[:, None], radius[part, None, None]
        queries = (centre + reach * shifts).clamp(0, 1)
        shifts = (queries - centre) / reach  # what the box left of them
        labels = adversarial(queries.reshape(-1, *point.shape[1:]), rows[part].repeat_interleave(count))
        signs = labels.reshape(len(part), count, 1).to(point.dtype) * 2 - 1  # (n, N, 1)
        mean = signs.mean(1, keepdim=True)
        # All on one side: the mean would take everything off.
        signs = torch.where(mean.abs() == 1, signs, signs - mean)
        estimates.append((signs * shifts).mean(1).reshape(len(part), *point.shape[1:]))
    return steepest(torch.cat(estimates), "L2")


def _jump(adversarial: Oracle, point: Tensor, direction: Tensor, rows: Tensor, length: Tensor) -> Tensor:
    """The longest of ``length``, half of it, a quarter ... that stays adversarial; the point itself where none does."""
    arrived, todo = point.clone(), torch.arange(len(rows), device=rows.device)
    for halving in range(20):
        step = per_sample(length[todo] / 2**halving, point[todo]) * direction[todo]
        trial = (point[todo] + step).clamp(0, 1)
        hit = adversarial(trial, rows[todo])
        arrived[todo[hit]] = trial[hit]
        todo = todo[~hit]
        if not len(todo):
            break
    return arrived
