"""Attacks on a classifier behind a purifier, strong and weak, so that the gap between them can be seen.

An attack on a random defence follows the mean over draws of its noise (expectation over transformation: Athalye et al.
2018, arXiv 1707.07397), and never takes one lucky draw for a success: all attacks here run to their end, and what they
give is judged by ``purification_protocol`` on draws that they have not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.attacks.ascent import ascend
from sfumato.attacks.auto_pgd import auto_pgd
from sfumato.attacks.batching import random_start
from sfumato.attacks.context import AttackContext, Goal
from sfumato.attacks.losses import Loss, cross_entropy, dlr, margin
from sfumato.classifiers import Classifier
from sfumato.core.errors import InputError
from sfumato.core.streams import mix_seed, streams_for
from sfumato.defences.purification.purifier import Noises, Purifier, answers, purified

ATTACK, SELECT, CHECK, PICTURE = range(4)  # what a draw is for: each has noise of its own
_PHASE = 2**24  # draws of one phase
_SALT = 8000
WEAK, EXACT = "weak", "exact"


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
class Scene:
    """Some images, and what stands between them and a wrong answer.

    Args:
        classifier, purifier: the defence.
        x: (B, C, H, W) in [0, 1]; y: (B,) true labels; ids: B numbers, of which all randomness depends.
        norm, eps: of the perturbations.
        seed: of everything random.
        effort: see there.
    """

    classifier: Classifier
    purifier: Purifier
    x: Tensor
    y: Tensor
    ids: list[int]
    norm: str
    eps: float
    seed: int
    effort: Effort

    @property
    def radius(self) -> Tensor:
        return torch.full((len(self.x),), self.eps, dtype=self.x.dtype, device=self.x.device)

    def noise(self, phase: int, number: int) -> Noises:
        """Draw ``number`` of that phase, of each image its own."""
        return self.purifier.noise(self.ids, self.seed, phase * _PHASE + number)

    def start(self, salt: int) -> Tensor:
        """A random point of the ball."""
        return random_start(self.x, self.norm, self.radius, streams_for(self.x, self.seed, self.ids, _SALT + salt))

    def apgd(self, target: Classifier, loss: Loss, steps: int, salt: int, batch_size: int | None = None) -> Tensor:
        """One run of APGD to the end on a deterministic classifier, from a random point: the point of highest loss."""
        context = AttackContext.of(
            target, self.x, self.y, norm=self.norm, eps=self.eps, batch_size=batch_size, attack="apgd"
        )
        goal = Goal(lambda logits, y, _: loss(logits, y), context.y, context.y)
        return auto_pgd(context, self.start(salt), goal, steps, stop=False)

    @torch.no_grad()
    def said(self, x: Tensor, phase: int, count: int) -> Tensor:
        """(count, B, K) logits of the defence for ``x``, draw by draw."""
        draws = [answers(self.classifier, self.purifier, x, [self.noise(phase, k)]) for k in range(count)]
        return torch.stack(draws).to(self.x.device)

    def score(self, x: Tensor) -> Tensor:
        """(B,) how well images stand on the attacker's own draws: how many are right, and below 1 how surely."""
        logits = self.said(x, SELECT, self.effort.draws)
        heights = torch.stack([margin(each, self.y) for each in logits])  # (draws, B)
        return (logits.argmax(2) == self.y).sum(0) + 0.9 * torch.sigmoid(-heights.mean(0))


class Method(NamedTuple):
    """An attack on a purified classifier."""

    title: Callable[[Effort], str]
    kind: str  # WEAK or EXACT
    run: Callable[[Scene], Tensor]
    cost: Callable[
        [Effort, int], float
    ]  # evaluations of the network an image, about; the second is the purifier's steps


_GRADIENT = 4  # forward, again, and backward, in forward passes


def methods(purifier: Purifier) -> dict[str, Method]:
    """Those that apply: a purifier of the fewest steps is its own surrogate."""
    shortest = purifier.steps == purifier.ladder.stages - purifier.level.stage and purifier.sampler == "euler"
    return {name: method for name, method in METHODS.items() if not (shortest and name == "one-step")}


def transfer(scene: Scene) -> Tensor:
    """APGD on the margin of the bare classifier, to the end: the most wrong image, which knows of no purifier."""
    return scene.apgd(scene.classifier, margin, scene.effort.fixed_steps, 1)


def bpda(scene: Scene) -> Tensor:
    """PGD with the true forward pass, whose backward pass takes the purifier for the identity."""
    return expected_pgd(scene, scene.purifier, "identity", 2)


def one_step(scene: Scene) -> Tensor:
    """PGD on a surrogate: the same noise, and one step up a stage (Lee & Kim 2023 attack with fewer steps so)."""
    return expected_pgd(scene, scene.purifier.one_step(), "exact", 3)


def exact_pgd(scene: Scene) -> Tensor:
    """PGD with exact gradients, over fresh noise in every step."""
    return expected_pgd(scene, scene.purifier, "exact", 4)


def exact_apgd(scene: Scene) -> Tensor:
    """APGD on the DLR loss with exact gradients, over draws that stay the same during a run.

    So the loss is a function of the image, as its bookkeeping of best points and steps supposes.
    """

    def run(restart: int) -> Tensor:
        mean = purified(
            scene.classifier, scene.purifier, draws=scene.effort.draws, fixed=True,
            seed=mix_seed(scene.seed, _SALT + restart),
        )  # fmt: skip
        return scene.apgd(mean, dlr, scene.effort.steps, 50 + restart, batch_size=len(scene.x))

    return _best(scene, run)


def expected_pgd(scene: Scene, purifier: Purifier, through: str, salt: int) -> Tensor:
    """PGD on the cross-entropy of the mean probability over ``effort.draws`` fresh draws in each step.

    Returns:
        (B, ...) in ball and box: the last point, of ``effort.restarts`` runs the one that is right least often on draws of
        the attacker's own.
    """
    steps, draws = scene.effort.steps, scene.effort.draws

    def run(restart: int) -> Tensor:
        def slope(x_adv: Tensor, index: int) -> Tensor:
            first = (restart * steps + index) * draws
            noises = [
                purifier.noise(scene.ids, scene.seed, ATTACK * _PHASE + first + k) for k in range(draws)
            ]  # of a surrogate: its own shapes
            with torch.inference_mode(False), torch.enable_grad():
                leaf = x_adv.clone().requires_grad_()
                logits = answers(scene.classifier, purifier, leaf, noises, through)
                if not logits.requires_grad:
                    raise InputError("no gradient flows through the classifier, so it cannot be attacked exactly: give "
                                     "a model in PyTorch")  # fmt: skip
                loss = cross_entropy(logits, scene.y.to(logits.device)).sum()
                return torch.autograd.grad(loss, leaf)[0].nan_to_num(0.0, 0.0, 0.0)

        start = scene.start(100 * salt + restart)
        return ascend(scene.x, slope, norm=scene.norm, eps=scene.eps, steps=steps, begin=start)

    return _best(scene, run)


def _best(scene: Scene, run: Callable[[int], Tensor]) -> Tensor:
    """Of each image the restart after which it stands worst."""
    best = run(0)
    if scene.effort.restarts == 1:
        return best
    lowest = scene.score(best)
    for restart in range(1, scene.effort.restarts):
        other = run(restart)
        score = scene.score(other)
        better = score < lowest
        best[better], lowest[better] = other[better], score[better]
    return best


def _steps(effort: Effort) -> str:
    again = f", {effort.restarts} restarts" if effort.restarts > 1 else ""
    return f"{effort.steps} steps of {effort.draws} draws{again}"


def _gradients(effort: Effort, steps: int) -> float:
    return _GRADIENT * steps * effort.steps * effort.draws * effort.restarts


METHODS = {
    "transfer": Method(
        lambda e: f"transfer: APGD on the bare classifier, {e.fixed_steps} steps", WEAK, transfer, lambda e, n: 0
    ),
    "bpda": Method(
        lambda e: f"BPDA: PGD that takes the purifier for the identity on the way back, {_steps(e)}", WEAK, bpda,
        lambda e, n: _gradients(e, n) / _GRADIENT,
    ),
    "one-step": Method(
        lambda e: f"surrogate: PGD through the shortest way up, {_steps(e)}", WEAK, one_step, lambda e, n: _gradients(e, 1)
    ),
    "pgd": Method(lambda e: f"PGD, exact gradients, {_steps(e)}", EXACT, exact_pgd, _gradients),
    "apgd": Method(lambda e: f"APGD, exact gradients, {_steps(e)}", EXACT, exact_apgd, _gradients),
}  # fmt: skip
