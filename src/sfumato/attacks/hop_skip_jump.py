"""HopSkipJump (Chen et al. 2020, arXiv 1904.02144): only the predicted labels are used, no logits and no gradients."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.attacks.closest import Closest, pull_back
from sfumato.attacks.context import AttackContext
from sfumato.attacks.norms import norm_of, per_sample, steepest
from sfumato.attacks.registry import minimal
from sfumato.core.streams import mix_seed

if TYPE_CHECKING:
    pass

STARTS = 10  # images of uniform noise, the closest of which is the start
GRIDS = (2, 3, 4, 6, 8)  # tiles a side of the patterns tried after them
TRIALS = 100  # images tried until there is any start
START_ROUNDS = 7  # of their bisection
MOST_EVALUATIONS = 10_000  # of one gradient estimate
FIRST_RADIUS = 0.1  # of the first estimate, as a share of the pixel range
WIDER = 10  # times the paper's radius: more of the boundary, and of its normal, against the bisection's error
MEMORY = {"L2": 0.0, "Linf": 0.7}  # weight of the last direction: the sign that Linf takes gains by less noise
NUMBERS_AT_ONCE = 2**24  # pixels in one batch of queries


@minimal("hop-skip-jump", "L2", "Linf")
def hop_skip_jump(
    context: AttackContext, *, steps: int = 32, evaluations: int = 100, starts: Tensor | None = None
) -> Tensor:
    """The closest adversarial example in L2 or Linf that labels alone lead to (algorithm 2 of the paper).

    Begins at an image that is adversarial, goes back to the boundary by bisection towards ``x``, estimates the
    boundary's normal from the labels of random points around, and jumps along it; each jump is halved until it stays
    adversarial. The points lie ten times as far out as in the paper, and for Linf the normal is a running mean: both found
    smaller perturbations at equal queries. A sample costs about ``evaluations * steps^1.5 * 2 / 3`` forward passes.

    Args: as every attack, see registry.py, and
        steps: jumps.
        evaluations: labels asked for in the first gradient estimate; that of step t takes sqrt(t) times as many.
        starts: (B, ...) an adversarial image for each sample, in [0, 1]: for targeted attacks, an image of the wanted
            class. The closest of it and of 9 images of noise is taken (of 10 without it; up to 100 are tried
            until one is adversarial).
    """
    x_adv = context.x.clone()
    start, rows = _starts(context, starts)
    if len(rows):
        x_adv[rows] = _walk(context[rows], start[rows], steps, evaluations)
    return x_adv


def _adversarial(context: AttackContext, points: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
    """Whether points (n, ...) of the samples, or of ``rows`` (n,) of them, are adversarial, (n,) bool, by labels alone."""
    return (context.classifier.predict(points) == context.y[rows]) == context.targeted


def _starts(context: AttackContext, given: Tensor | None) -> tuple[Tensor, Tensor]:
    """The closest of a few adversarial images after a short bisection, (B, ...), and the rows (N,) that have one."""
    # Not the streams of what follows: how many starts are drawn depends on the batch, and that must not.
    x, closest, streams = context.x, Closest(context), context.streams(1)
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
        rows = rows[_adversarial(context, noise[rows], rows)]
        if not len(rows):
            continue
        some = context[rows]
        ends = pull_back(some, noise[rows], functools.partial(_adversarial, some), START_ROUNDS)
        closest.offer(ends, torch.ones_like(rows, dtype=torch.bool), rows)
    return closest.x_adv, torch.nonzero(closest.size < torch.inf).flatten()


def _coarse(noise: Tensor, grid: int) -> Tensor:
    """Noise images (B, C, H, W) of ``grid * grid`` flat tiles; anything but images as it is."""
    if noise.ndim != 4:
        return noise
    return F.interpolate(noise[..., :grid, :grid], size=noise.shape[2:], mode="nearest-exact")


def _walk(context: AttackContext, start: Tensor, steps: int, evaluations: int) -> Tensor:
    """The closest points (B, ...) that the jumps from adversarial ``start`` (B, ...) come to."""
    x, norm, closest, values = context.x, context.norm, Closest(context), start[0].numel()
    streams = [torch.Generator().manual_seed(mix_seed(context.seed, int(i))) for i in context.ids]
    every = torch.ones(len(x), dtype=torch.bool, device=x.device)
    # The paper's bisection tolerance theta, relative to the distance (section 3.2).
    theta = values**-1.5 if norm == "L2" else values**-2.0
    rounds = math.ceil(-math.log2(max(theta, 1e-7)))
    ask = functools.partial(_adversarial, context)
    point = pull_back(context, start, ask, rounds)
    normal = torch.zeros_like(point)
    for step in range(1, steps + 1):
        distance = norm_of(point - x, norm)  # (N,)
        radius = WIDER * distance * theta * (math.sqrt(values) if norm == "L2" else values)
        radius = torch.full_like(distance, FIRST_RADIUS) if step == 1 else radius.clamp(min=1e-6)
        count = min(int(evaluations * math.sqrt(step)), MOST_EVALUATIONS)
        estimate = _normal(context, point, streams, radius, count)
        normal = steepest(estimate + MEMORY[norm] * normal, "L2")
        direction = normal if norm == "L2" else normal.sign()
        point = _jump(context, point, direction, distance / math.sqrt(step))
        point = pull_back(context, point, ask, rounds)
        closest.offer(point, every)
    return closest.x_adv


def _normal(
    context: AttackContext, point: Tensor, streams: list[torch.Generator], radius: Tensor, count: int
) -> Tensor:
    """(N, ...) unit vectors into the adversarial side: the paper's equation 16, with the labels' mean taken off."""
    estimates = []
    norm, values = context.norm, point[0].numel()
    at_once = max(1, NUMBERS_AT_ONCE // (count * values))
    for part in torch.arange(len(point), device=point.device).split(at_once):
        # torch's generators, one a sample: these are too many numbers for the slower hash of streams.py.
        draw = torch.randn if norm == "L2" else torch.rand
        drawn = [draw((count, values), generator=streams[i]) for i in part.tolist()]
        shifts = torch.stack(drawn).to(point)  # (n, N, d)
        shifts = shifts if norm == "L2" else 2 * shifts - 1  # as the authors draw them
        shifts = shifts / torch.linalg.vector_norm(shifts, dim=2, keepdim=True)
        centre, reach = point[part].flatten(1)[:, None], radius[part, None, None]
        queries = (centre + reach * shifts).clamp(0, 1)
        shifts = (queries - centre) / reach  # what the box left of them
        labels = _adversarial(context, queries.reshape(-1, *point.shape[1:]), part.repeat_interleave(count))
        signs = labels.reshape(len(part), count, 1).to(point.dtype) * 2 - 1  # (n, N, 1)
        mean = signs.mean(1, keepdim=True)
        # All on one side: the mean would take everything off.
        signs = torch.where(mean.abs() == 1, signs, signs - mean)
        estimates.append((signs * shifts).mean(1).reshape(len(part), *point.shape[1:]))
    return steepest(torch.cat(estimates), "L2")


def _jump(context: AttackContext, point: Tensor, direction: Tensor, length: Tensor) -> Tensor:
    """The longest of ``length``, half of it, a quarter ... that stays adversarial; the point itself where none does."""
    arrived, todo = point.clone(), torch.arange(len(point), device=point.device)
    for halving in range(20):
        step = per_sample(length[todo] / 2**halving, point[todo]) * direction[todo]
        trial = (point[todo] + step).clamp(0, 1)
        hit = _adversarial(context, trial, todo)
        arrived[todo[hit]] = trial[hit]
        todo = todo[~hit]
        if not len(todo):
            break
    return arrived
