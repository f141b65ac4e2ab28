"""Attacks on a classifier behind a purifier, weak and strong, so that gradient masking can be seen between them.

An attack on a random defence follows the mean over draws of its noise (expectation over transformation: Athalye et al.
2018, arXiv 1707.07397), and never takes one lucky draw for a success: all attacks here run to their end, and their results
are judged by ``purification_protocol`` on draws that they have not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.attacks.ascent import ascend
from sfumato.attacks.auto_pgd import auto_pgd
from sfumato.attacks.context import AttackContext, Goal
from sfumato.attacks.losses import Loss, cross_entropy, dlr, margin
from sfumato.classifiers import Classifier
from sfumato.core.errors import InputError
from sfumato.core.streams import mix_seed
from sfumato.defences.purification.purifier import Noises, Purifier, answers, purified

ATTACK, SELECT, CHECK, PICTURE = range(4)  # what a draw is for: each has noise of its own
_PHASE = 2**24  # draws of one phase
_SALT = 8000
WEAK, EXACT = "weak", "exact"
GRADIENT = 4  # cost of a gradient in forward passes: forward, again, and backward


@dataclass(frozen=True)
class Effort:
    """How hard the attacks try, and how often the defence is asked.

    Args:
        steps: gradients of each attack on the random defence.
        draws: of noise, over which each gradient is taken; as many, others, choose between results.
        restarts: runs of each attack on the random defence.
        submissions: how often each attacked image is handed in; votes of the majority.
        fixed_steps: gradients of the attacks on deterministic functions: the fixed-noise defence, the bare classifier.
        targets: classes that the targeted one of them aims at.
    """

    steps: int = 20
    draws: int = 8
    restarts: int = 1
    submissions: int = 10
    fixed_steps: int = 50
    targets: int = 3

    def __post_init__(self) -> None:
        if min(self.steps, self.draws, self.restarts, self.submissions, self.fixed_steps, self.targets) < 1:
            raise InputError(f"{self} leaves something out: every number must be 1 or more")


@dataclass(frozen=True)
class PurificationContext:
    """Images under attack, and the defence: a classifier behind a purifier.

    Args:
        images: the bare classifier, the images, their true labels, norm, eps, seed and ids.
        purifier: in front of the classifier.
        effort: see there.
    """

    images: AttackContext
    purifier: Purifier
    effort: Effort

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, some: slice) -> PurificationContext:
        return PurificationContext(self.images[some], self.purifier, self.effort)

    def noise(self, phase: int, draw: int, purifier: Purifier | None = None) -> Noises:
        """Draw number ``draw`` of that phase, of each image its own; of a surrogate in its own shapes."""
        ids = self.images.ids.tolist()
        return (purifier or self.purifier).noise(ids, self.images.seed, phase * _PHASE + draw)

    def start(self, salt: int) -> Tensor:
        """A random point of each ball."""
        return self.images.random_start(_SALT + salt)

    def apgd(self, target: Classifier, loss: Loss, steps: int, salt: int, batch_size: int | None = None) -> Tensor:
        """One run of APGD to the end on a deterministic classifier, from a random point: the point of highest loss."""
        context = replace(self.images, classifier=target, batch_size=batch_size)
        goal = Goal(lambda logits, y, _: loss(logits, y), context.y, context.y)
        return auto_pgd(context, self.start(salt), goal, steps, stop=False)

    @torch.no_grad()
    def logits(self, x: Tensor, phase: int, count: int) -> Tensor:
        """(count, B, K) of the defence for ``x``, draw by draw."""
        draws = [answers(self.images.classifier, self.purifier, x, [self.noise(phase, k)]) for k in range(count)]
        return torch.stack(draws).to(self.images.x.device)

    def robustness(self, x: Tensor) -> Tensor:
        """(B,) of images on the attacker's own draws: how many are right, and below 1 by what margin."""
        logits, y = self.logits(x, SELECT, self.effort.draws), self.images.y
        margins = torch.stack([margin(each, y) for each in logits])  # (draws, B)
        return (logits.argmax(2) == y).sum(0) + 0.9 * torch.sigmoid(-margins.mean(0))


def transfer(context: PurificationContext) -> Tensor:
    """APGD on the margin of the bare classifier, to the end: it knows of no purifier."""
    return context.apgd(context.images.classifier, margin, context.effort.fixed_steps, 1)


def bpda(context: PurificationContext) -> Tensor:
    """PGD whose forward pass is exact and whose backward pass takes the purifier for the identity."""
    return expected_pgd(context, context.purifier, "identity", 2)


def one_step(context: PurificationContext) -> Tensor:
    """PGD on a surrogate: the same noise, and one step a stage (Lee & Kim 2023 attack with fewer steps so)."""
    return expected_pgd(context, context.purifier.one_step(), "exact", 3)


def exact_pgd(context: PurificationContext) -> Tensor:
    """PGD with exact gradients, over fresh noise in every step."""
    return expected_pgd(context, context.purifier, "exact", 4)


def exact_apgd(context: PurificationContext) -> Tensor:
    """APGD on the DLR loss with exact gradients, over draws that stay the same during a run.

    So the loss is a function of the image, as APGD's bookkeeping of best points and steps supposes.
    """
    images, effort = context.images, context.effort

    def run(restart: int) -> Tensor:
        seed = mix_seed(images.seed, _SALT + restart)
        mean = purified(images.classifier, context.purifier, draws=effort.draws, fixed=True, seed=seed)
        return context.apgd(mean, dlr, effort.steps, 50 + restart, batch_size=len(images))

    return _best(context, run)


def expected_pgd(context: PurificationContext, purifier: Purifier, through: str, salt: int) -> Tensor:
    """PGD on the cross-entropy of the mean probability over ``effort.draws`` fresh draws in each step.

    Returns:
        (B, ...) in ball and box: the last point, of ``effort.restarts`` runs the one that is right least often on draws of
        the attacker's own.
    """
    images, steps, draws = context.images, context.effort.steps, context.effort.draws

    def run(restart: int) -> Tensor:
        def slope(x_adv: Tensor, index: int) -> Tensor:
            first = (restart * steps + index) * draws
            noises = [context.noise(ATTACK, first + k, purifier) for k in range(draws)]
            with torch.inference_mode(False), torch.enable_grad():
                leaf = x_adv.clone().requires_grad_()
                logits = answers(images.classifier, purifier, leaf, noises, through)
                if not logits.requires_grad:
                    raise InputError(
                        "no gradient flows through the classifier, so it cannot be attacked exactly: give a model in PyTorch"
                    )
                loss = cross_entropy(logits, images.y.to(logits.device)).sum()
                return torch.autograd.grad(loss, leaf)[0].nan_to_num(0.0, 0.0, 0.0)

        begin = context.start(100 * salt + restart)
        return ascend(images.x, slope, norm=images.norm, eps=images.eps, steps=steps, begin=begin)

    return _best(context, run)


def _best(context: PurificationContext, run: Callable[[int], Tensor]) -> Tensor:
    """Of each image the restart after which it is least robust."""
    best = run(0)
    if context.effort.restarts == 1:
        return best
    lowest = context.robustness(best)
    for restart in range(1, context.effort.restarts):
        other = run(restart)
        height = context.robustness(other)
        better = height < lowest
        best[better], lowest[better] = other[better], height[better]
    return best


class PurificationAttack(NamedTuple):
    """An attack on a purified classifier."""

    title: str  # with {fixed_steps} or {runs} of an Effort
    short: str
    kind: str  # WEAK: does not follow the purifier's true gradient; EXACT
    run: Callable[[PurificationContext], Tensor]
    cost: Callable[[int], int]  # purifier's steps -> forward passes of the network for a gradient, about

    def named(self, effort: Effort) -> str:
        """The title of what was done with that effort."""
        again = f", {effort.restarts} restarts" if effort.restarts > 1 else ""
        runs = f"{effort.steps} steps of {effort.draws} draws{again}"
        return self.title.format(fixed_steps=effort.fixed_steps, runs=runs)

    def evaluations(self, effort: Effort, steps: int) -> int:
        """Of the network, an image, about; ``steps`` of the purifier."""
        return self.cost(steps) * effort.steps * effort.draws * effort.restarts


ATTACKS = {
    "transfer": PurificationAttack(
        "transfer: APGD on the bare classifier, {fixed_steps} steps", "transfer", WEAK, transfer, lambda n: 0
    ),
    "bpda": PurificationAttack(
        "BPDA: PGD with the identity for the purifier's backward pass, {runs}", "BPDA", WEAK, bpda, lambda n: n
    ),
    "one-step": PurificationAttack(
        "surrogate: PGD through a purifier of one step a stage, {runs}", "surrogate", WEAK, one_step, lambda n: GRADIENT
    ),
    "pgd": PurificationAttack("PGD, exact gradients, {runs}", "PGD", EXACT, exact_pgd, lambda n: GRADIENT * n),
    "apgd": PurificationAttack("APGD, exact gradients, {runs}", "APGD", EXACT, exact_apgd, lambda n: GRADIENT * n),
}


def attacks_on(purifier: Purifier) -> dict[str, PurificationAttack]:
    """Those that apply: a purifier of the fewest steps is its own surrogate."""
    shortest = purifier.steps == purifier.ladder.stages - purifier.level.stage and purifier.sampler == "euler"
    return {name: attack for name, attack in ATTACKS.items() if not (shortest and name == "one-step")}
