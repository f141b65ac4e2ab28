"""Auto-PGD: projected gradient ascent that halves its own step (Croce & Hein 2020a, arXiv 2003.01690, algorithm 1).

A step is taken with momentum; at checkpoints, ever closer together, a sample whose loss rose in too few steps, or whose
best has stood still at an unchanged step, goes back to its best point with half the step. For L1 the steps are sparse, at
a sparsity that adapts to the best point (Croce & Hein 2021, arXiv 2103.01208, algorithm 1). A sample leaves as soon as it
is fooled: the verdict cannot change any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.attacks.batching import answers, checked, gradients, random_start
from sfumato.attacks.losses import LOSSES, margin, reached, targeted_dlr
from sfumato.attacks.norms import check_norm, cube, flat, norm_of, per_sample, project_onto, steepest
from sfumato.attacks.registry import ATTACKS
from sfumato.core.errors import InputError
from sfumato.core.streams import streams_for

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

AimedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits (B, K), y (B,), target class (B,) -> (B,)

MOMENTUM = 0.75  # weight of the new step against the last one
RISES = 0.75  # the step is halved where fewer than this share of the steps raised the loss
FIRST, SHORTER, SHORTEST = 0.22, 0.03, 0.06  # periods between checkpoints, as shares of all steps
L1_PERIOD, L1_SHARE, L1_SHRINK, L1_SMALLEST = 0.04, 0.2, 1.5, 10.0  # Croce & Hein 2021, section 3.2
L1_STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # radius over eps, share of the steps


@ATTACKS.add("apgd")
def apgd(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    eps: float | Tensor = 8 / 255,
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    steps: int = 100,
    restarts: int = 1,
    loss: str = "ce",
    batch_size: int | None = None,
) -> Tensor:
    """Auto-PGD on the cross-entropy, the margin or the difference of logits ratio (DLR).

    Args:
        classifier: to attack.
        x: (B, ...) pixels in [0, 1].
        y: (B,) true labels, or with ``targeted`` the labels wanted.
        norm: Linf, L2 or L1 (which first searches balls of 3 and 2 eps, and works its way in).
        eps: radius, a float or (B,).
        targeted: lower the loss at ``y`` in place of raising it.
        seed, ids: of the random starts; sample i's depend on seed and ids[i] (default i) alone.
        steps: gradients in each run, after the one at the start.
        restarts: runs, each on the samples that still stand.
        loss: "ce", "margin" or "dlr" (below 3 classes the margin).
        batch_size: samples in a pass; the classifier's own by default.

    Returns:
        (B, ...) in the box and the ball; where nothing was found, the attempt of largest margin. Samples that are
        fooled from the start come back as they are.
    """
    x, y, ids = _checked_all(x, y, ids, eps, norm, steps, restarts)
    base, sign = LOSSES.find(loss), -1.0 if targeted else 1.0

    def rise(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return sign * base(logits, y)

    runs = [(y, 1000 + restart) for restart in range(restarts)]
    return _attack(classifier, x, y, lambda logits: (y, runs), rise, norm, eps, targeted, seed, ids, steps, batch_size)


@ATTACKS.add("apgd-t")
def apgd_targeted(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    eps: float | Tensor = 8 / 255,
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    batch_size: int | None = None,
) -> Tensor:
    """Auto-PGD on the targeted DLR loss, toward one class after the other, the most likely first.

    Args:
        classifier, x, y, norm, eps, seed, ids, steps, batch_size: as in ``apgd``.
        targeted: aim at ``y`` only, away from what the classifier says of ``x``.
        restarts: runs toward each class.
        targets: how many classes to aim at; never more than there are wrong ones. Any wrong class is a success.

    Returns:
        As ``apgd``. Below 4 classes the loss is the difference of the two logits.
    """
    x, y, ids = _checked_all(x, y, ids, eps, norm, steps, restarts)
    if targets < 1:
        raise InputError(f"apgd-t with {targets} targets does nothing: give 1 or more")

    def plan(logits: Tensor) -> tuple[Tensor, list[tuple[Tensor, int]]]:
        if targeted:
            return logits.argmax(1), [(y, 2000 + restart) for restart in range(restarts)]
        others = likely_targets(logits, y, targets)  # (B, T)
        return y, [(aim, 2000 + 100 * i + r) for i, aim in enumerate(others.unbind(1)) for r in range(restarts)]

    return _attack(classifier, x, y, plan, targeted_dlr, norm, eps, targeted, seed, ids, steps, batch_size)


def likely_targets(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The ``count`` most likely classes other than ``y``, most likely first, (B, T) with T at most K - 1."""
    others = logits.scatter(1, y[:, None], float("-inf"))
    return others.argsort(dim=1, descending=True)[:, : min(count, logits.shape[1] - 1)]


def _checked_all(
    x: Tensor, y: Tensor, ids: Tensor | Sequence[int] | None, eps: float | Tensor, norm: str, steps: int, restarts: int
) -> tuple[Tensor, Tensor, Tensor]:
    check_norm(norm, ("Linf", "L2", "L1"), "apgd")
    if steps < 1 or restarts < 1:
        raise InputError(f"apgd with {steps} steps and {restarts} restarts does nothing: give 1 or more of each")
    return checked(x, y, ids, eps)


def _attack(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    plan: Callable[[Tensor], tuple[Tensor, list[tuple[Tensor, int]]]],
    loss: AimedLoss,
    norm: str,
    eps: float | Tensor,
    targeted: bool,
    seed: int,
    ids: Tensor,
    steps: int,
    batch_size: int | None,
) -> Tensor:
    """Every run of ``plan(clean logits) = (source class, [(target class, salt), ...])`` on the samples still standing."""
    result = x.clone()
    if len(x) == 0:
        return result
    radius = per_sample(eps, x).reshape(-1)
    with classifier.ready():
        clean = answers(classifier, x, batch_size)
        source, runs = plan(clean)
        rows = (~reached(clean, y, targeted)).nonzero().flatten()
        highest = x.new_full((len(x),), -torch.inf)
        for target, salt in runs:
            if len(rows) == 0:
                break
            some, wanted = x[rows], y[rows]
            begin = random_start(
                some,
                norm,
                radius[rows] * (L1_STAGES[0][0] if norm == "L1" else 1),
                streams_for(some, seed, ids[rows], salt),
            )
            labels = (source[rows], target[rows])
            found = _staged(
                classifier, some, wanted, begin, loss, labels, norm, radius[rows], steps, targeted, batch_size
            )
            logits = answers(classifier, found, batch_size)
            fell = reached(logits, wanted, targeted)
            height = margin(logits, wanted).to(x.dtype) * (-1 if targeted else 1)
            better = fell | (height > highest[rows])
            result[rows[better]], highest[rows[better]] = found[better], height[better]
            rows = rows[~fell]
    return result


def _staged(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    begin: Tensor,
    loss: AimedLoss,
    labels: tuple[Tensor, Tensor],
    norm: str,
    radius: Tensor,
    steps: int,
    targeted: bool,
    batch_size: int | None,
) -> Tensor:
    """One run; for L1 three, in shrinking balls, of which only the last one counts."""
    if norm != "L1":
        return climb(classifier, x, y, begin, loss, labels, norm, radius, steps, targeted, batch_size)
    shares = [math.ceil(share * steps) for _, share in L1_STAGES[:-1]]
    for index, ((wider, _), part) in enumerate(zip(L1_STAGES, [*shares, steps - sum(shares)], strict=True)):
        begin = begin if index == 0 else project_onto(x, begin, norm, wider * radius)
        begin = climb(
            classifier, x, y, begin, loss, labels, norm, wider * radius, max(part, 1), targeted, batch_size,
            stop=wider == 1, sparse=index > 0,
        )  # fmt: skip
    return begin


@dataclass
class _Climb:
    """The samples still attacked, one row each."""

    rows: Tensor  # (n,) where each belongs in the result
    x: Tensor  # (n, ...)
    y: Tensor  # (n,)
    source: Tensor  # (n,) the loss's labels
    target: Tensor
    radius: Tensor  # (n,)
    low: Tensor  # (n, ...) Linf: the corners of box and ball
    high: Tensor
    x_adv: Tensor  # (n, ...)
    before: Tensor  # (n, ...) one step ago
    slope: Tensor  # (n, ...) the gradient at x_adv
    best: Tensor  # (n, ...)
    best_slope: Tensor
    best_loss: Tensor  # (n,)
    last_loss: Tensor
    full: Tensor  # (n,) the first step's length
    step: Tensor  # (n,) the step's length now
    rises: Tensor  # (n,) steps since the last checkpoint that raised the loss
    halved: Tensor  # (n,) bool: at the last checkpoint
    checked_loss: Tensor  # (n,) best loss at the last checkpoint
    share: Tensor  # (n,) L1: of the entries, in a step
    nonzero: Tensor  # (n,) L1: entries of the best perturbation at the last checkpoint

    def keep(self, rows: Tensor) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[rows])

    def go_back(self, some: Tensor) -> None:
        """To the best point, where ``some`` (n,) is True."""
        where = some.reshape(-1, *[1] * (self.x.ndim - 1))
        self.x_adv = torch.where(where, self.best, self.x_adv)
        self.slope = torch.where(where, self.best_slope, self.slope)


def climb(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    begin: Tensor,
    loss: AimedLoss,
    labels: tuple[Tensor, Tensor],
    norm: str,
    radius: Tensor,
    steps: int,
    targeted: bool = False,
    batch_size: int | None = None,
    stop: bool = True,
    sparse: bool = False,
) -> Tensor:
    """One run of algorithm 1 from ``begin``.

    Args:
        classifier, x, y, norm, targeted, batch_size: as in ``apgd``.
        begin: (B, ...) in ball and box.
        loss: ``loss(logits, *labels)`` is to be raised.
        labels: two of (B,).
        radius: (B,).
        steps: gradients after the first.
        stop: samples that are fooled leave, with that point; without, all run to the end for their highest loss.
        sparse: for L1, begin at the sparsity of ``begin`` in place of a fifth of the entries.

    Returns:
        (B, ...): the first adversarial point, or the one of highest loss.
    """
    result = begin.clone()
    width = flat(x).shape[1]
    full = radius * (1.0 if norm == "L1" else 2.0)
    logits, losses, slope = gradients(classifier, begin, loss, labels, batch_size)
    nonzero = norm_of(begin - x, "L0") if sparse else torch.full_like(radius, width)
    low, high = cube(x, radius) if norm == "Linf" else (x.new_empty(len(x), 0), x.new_empty(len(x), 0))
    state = _Climb(
        rows=torch.arange(len(x), device=x.device), x=x, y=y, source=labels[0], target=labels[1], radius=radius,
        low=low,
        high=high,
        x_adv=begin, before=begin, slope=slope, best=begin.clone(), best_slope=slope.clone(), best_loss=losses, last_loss=losses,
        full=full, step=full, rises=torch.zeros_like(radius), halved=torch.ones_like(radius, dtype=torch.bool),
        checked_loss=losses, share=nonzero / width / L1_SHRINK if sparse else torch.full_like(radius, L1_SHARE),
        nonzero=nonzero,
    )  # fmt: skip
    period = max(int((L1_PERIOD if norm == "L1" else FIRST) * steps), 1)
    since = 0
    for index in range(steps + 1):
        if stop:
            hit = reached(logits, state.y, targeted)
            if bool(hit.any()):
                result[state.rows[hit]] = state.x_adv[hit]
                state.keep(~hit)
        if index == steps or len(state.rows) == 0:
            break
        if since == period:
            since = 0
            if norm == "L1":
                _adapt_sparsity(state)
            else:
                _halve(state, period)
                period = max(period - max(int(SHORTER * steps), 1), max(int(SHORTEST * steps), 1))
        move = _stepped(state, norm, 1.0 if index == 0 else MOMENTUM)
        state.before, state.x_adv = state.x_adv, move
        logits, losses, state.slope = gradients(classifier, move, loss, (state.source, state.target), batch_size)
        state.rises += losses > state.last_loss
        state.last_loss = losses
        better = losses > state.best_loss
        if bool(better.any()):
            state.best[better], state.best_slope[better] = move[better], state.slope[better]
            state.best_loss = torch.where(better, losses, state.best_loss)
        since += 1
    result[state.rows] = state.best
    return result


def _stepped(state: _Climb, norm: str, momentum: float) -> Tensor:
    """The next point: a projected step, mixed with the last change and projected again; for L1 a sparse step alone."""
    length = per_sample(state.step, state.x)
    if norm == "L1":
        # Rounded down, so that two entries can become one.
        count = (state.share * flat(state.x).shape[1] + 1e-4).floor()
        return project_onto(state.x, state.x_adv + length * steepest(state.slope, norm, count), norm, state.radius)
    if norm == "Linf":  # as below, written into as few new tensors as can be: this is most of what is not the model's
        stepped = state.slope.sign().mul_(length).add_(state.x_adv).clamp_(state.low, state.high)
        change = (state.x_adv - state.before).mul_(1 - momentum).add_(state.x_adv, alpha=1 - momentum)
        return stepped.mul_(momentum).add_(change).clamp_(state.low, state.high)
    stepped = project_onto(state.x, state.x_adv + length * steepest(state.slope, norm), norm, state.radius)
    change = momentum * (stepped - state.x_adv) + (1 - momentum) * (state.x_adv - state.before)
    return project_onto(state.x, state.x_adv + change, norm, state.radius)


def _halve(state: _Climb, period: int) -> None:
    """Conditions 1 and 2 of Croce & Hein 2020a, section 3.2: half the step and back to the best point."""
    too_few = state.rises <= RISES * period
    stuck = ~state.halved & (state.checked_loss >= state.best_loss)
    state.halved = too_few | stuck
    state.step = torch.where(state.halved, state.step / 2, state.step)
    state.checked_loss = state.best_loss
    state.rises = torch.zeros_like(state.rises)
    state.go_back(state.halved)


def _adapt_sparsity(state: _Climb) -> None:
    """Croce & Hein 2021: where the best perturbation has become sparser, full steps from there; elsewhere shorter ones."""
    nonzero = norm_of(state.best - state.x, "L0")
    sparser = nonzero < 0.95 * state.nonzero
    state.share = nonzero / flat(state.x).shape[1] / L1_SHRINK
    shorter = torch.maximum(state.step / L1_SHRINK, state.full / L1_SMALLEST)
    state.step = torch.where(sparser, state.full, shorter)
    state.nonzero = nonzero
    state.go_back(sparser)
