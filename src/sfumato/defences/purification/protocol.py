"""Adversarial robustness of purification: four numbers under attacks with exact gradients, beside those of weaker attacks.

Of a random defence one number says little: an image may be right nine times in ten. On the same attacked images are counted

* average: how often one purification, with noise that nobody knew, is classified rightly,
* worst of ten: images that are right all of ten times, for whoever may try again needs one failure (Wang et al. 2024,
  DiffHammer, NeurIPS, "N-evaluation"),
* majority: images whose true class has the most of these ten votes; a tie counts against the defence,

and apart from them the fixed-noise number, of the deterministic defence whose noise the attacker knows (Liu et al. 2024,
arXiv 2404.14309). Every attack finds its images on draws of its own; they are judged on fresh ones. No number here is a
certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.attacks import apgd, apgd_targeted, fooled
from sfumato.attacks.context import AttackContext
from sfumato.classifiers import Classifier
from sfumato.classifiers.accuracy import Accuracy
from sfumato.core.errors import InputError
from sfumato.core.slices import slices
from sfumato.defences.purification.attacks import (
    ATTACKS,
    CHECK,
    EXACT,
    GRADIENT,
    PICTURE,
    WEAK,
    Effort,
    PurificationContext,
    attacks_on,
)
from sfumato.defences.purification.purifier import Purifier, purified

SCHEMA = "sfumato.purification/1"
GROUP = 16  # images at once, and what a stop can lose of one attack
PICTURED = 6  # images to show
NONE, BARE, FIXED = "none", "bare", "fixed"  # beside the attacks: none; on the bare classifier; on noise that is known
FIXED_NOISE = 0xF1  # mixed into the seed of the noise that the attacker knows

Tensors = dict[str, Tensor]
Compute = Callable[[], Tensors]
Keep = Callable[[str, Compute], Tensors]  # name of a part, how to compute it -> the part, maybe from a disk


def accuracies(predicted: Tensor, y: Tensor) -> dict[str, Any]:
    """Average, worst and majority of the labels ``predicted`` (draws, N) of images whose labels are ``y`` (N,)."""
    right = predicted == y  # (draws, N)
    count = len(y)
    classes = range(int(max(predicted.max(), y.max())) + 1)
    votes = torch.stack([(predicted == label).sum(0) for label in classes])  # (K, N)
    mine = votes.gather(0, y[None])[0]
    rival = votes.scatter(0, y[None], -1).amax(0)
    return {
        "average": Accuracy(float(right.double().mean(0).sum()), count).to_json(),
        "worst": Accuracy(int(right.all(0).sum()), count).to_json(),
        "majority": Accuracy(int((mine > rival).sum()), count).to_json(),
    }


@dataclass(frozen=True)
class Purification:
    """What was found.

    Attributes:
        report: JSON values, see ``summarise``.
        arrays: ``label`` (N,), ``none.said`` and for each attack A ``A.said`` (draws, N), the predictions, and ``A.score``
            (N,), the robustness on the attacker's draws; ``chosen`` (N,) which attack did best there; ``fixed``,
            ``fixed_clean``, ``bare``, ``bare_clean`` (N,) bool.
        pictures: (M, 3, C, H, W), clean, attacked, and attacked and purified.
        pictured: (M,) what the defence predicts for the last.
    """

    report: dict[str, Any]
    arrays: dict[str, np.ndarray]
    pictures: Tensor
    pictured: Tensor


@dataclass(frozen=True)
class PurificationSettings:
    """The settings of ``purification_protocol``.

    Args:
        norm: Linf, L2 or L1.
        eps: radius in that norm.
        effort: how hard to try.
        seed, ids: of everything random; that of image i depends on seed and ids[i] (default i) alone.
    """

    norm: str = "Linf"
    eps: float = 8 / 255
    effort: Effort = field(default_factory=Effort)
    seed: int = 0
    ids: Sequence[int] | None = None


def purification_protocol(
    classifier: Classifier,
    purifier: Purifier,
    x: Tensor,
    y: Tensor,
    *,
    keep: Keep | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Purification:
    """Attack a classifier behind a purifier, and report the four numbers.

    Args:
        classifier: the bare one; its gradients are needed.
        purifier: in front of it.
        x: (N, C, H, W) pixels in [0, 1].
        y: (N,) true labels.
        keep: called with the name of each part and how to compute it, for what goes on after a stop.
        progress: called with (work done, work in all).
        settings: the fields of ``PurificationSettings``.

    Raises:
        InputError: images, labels, a norm or an eps that do not fit; a classifier without gradients.
    """
    asked = PurificationSettings(**settings)
    if not len(x) or not 0 < asked.eps < float("inf"):
        raise InputError(f"{len(x)} images and eps {asked.eps:g}: give 1 image or more, and a size over 0")
    how = {key: value for key, value in vars(asked).items() if key != "effort"}
    images = AttackContext.of(classifier, x, y, attack="an attack on a purifier", **how)
    classifier.logits(x[:1])  # what is wrong with the images or the model is said here
    low, high = (int(label) for label in images.y.aminmax())
    if low < 0 or high >= classifier.classes:
        raise InputError(f"labels run from {low} to {high}, the classifier has {classifier.classes} classes")
    context = PurificationContext(images, purifier, asked.effort)
    work = _Work(context, keep or (lambda name, compute: compute()), progress)
    found: dict[str, list[Tensors]] = {name: [] for name in work.names}
    with classifier.ready():
        for number, some in enumerate(slices(len(x), GROUP)):
            group = context[some]
            for name in work.names:
                compute = partial(_deterministic if name in (BARE, FIXED) else _attacked, group, name)
                found[name].append(work.part(f"{name}-{number}", name, len(group), compute))
            if number == 0:
                made = {name: parts[0] for name, parts in found.items()}
                shown = work.part("pictures-0", NONE, PICTURED, partial(_pictures, group, made))
    joined = {
        name: {key: torch.cat([part[key] for part in parts], -1 if key == "said" else 0) for key in parts[0]}
        for name, parts in found.items()
    }
    report, arrays = summarise(joined, context, asked.eps)
    return Purification(report, arrays, shown["pictures"], shown["said"])


class _Work:
    """Runs parts, and tells how far all have come, in evaluations of the generator's network that are expected."""

    def __init__(self, context: PurificationContext, keep: Keep, progress: Callable[[int, int], None] | None) -> None:
        self.keep, self.progress = keep, progress
        self.effort, self.steps = context.effort, context.purifier.steps
        self.names = (NONE, *attacks_on(context.purifier), BARE, FIXED)
        self.total = sum(self._cost(name) for name in self.names) * len(context) + self._cost(NONE) * PICTURED
        self.done = 0

    def part(self, name: str, kind: str, count: int, compute: Compute) -> Tensors:
        found = {key: tensor.detach().cpu() for key, tensor in self.keep(name, compute).items()}
        self.done += self._cost(kind) * count
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)
        return found

    def _cost(self, kind: str) -> int:
        effort = self.effort
        if kind == BARE:
            return 1
        if kind == FIXED:
            return GRADIENT * self.steps * effort.fixed_steps * (1 + effort.targets)
        judged = self.steps * (effort.submissions + effort.draws)
        return judged + (ATTACKS[kind].evaluations(effort, self.steps) if kind in ATTACKS else 0)


def _attacked(group: PurificationContext, name: str) -> Tensors:
    """The images of one attack on a group, their robustness on its own draws, and the predictions on fresh ones."""
    x_adv = group.images.x if name == NONE else ATTACKS[name].run(group)
    predicted = group.logits(x_adv, CHECK, group.effort.submissions).argmax(2)
    return {"x_adv": x_adv, "score": group.robustness(x_adv).double(), "said": predicted}


def _deterministic(group: PurificationContext, name: str) -> Tensors:
    """The bare classifier, or the defence with noise that is known: right without an attack, and still after APGD and
    targeted APGD, the first two of the standard ensemble."""
    images, effort = group.images, group.effort
    target = images.classifier
    if name == FIXED:
        target = purified(target, group.purifier, fixed=True, seed=images.seed ^ FIXED_NOISE)
    clean = ~fooled(target, images.x, images.y)
    robust = clean.clone()
    for attack in (apgd, partial(apgd_targeted, targets=effort.targets)):
        rows = robust.nonzero().flatten()
        if len(rows):
            left = images[rows]
            how = {"norm": left.norm, "eps": left.eps, "steps": effort.fixed_steps, "seed": left.seed, "ids": left.ids}
            robust[rows] = ~fooled(target, attack(target, left.x, left.y, **how), left.y)
    return {"clean": clean, "robust": robust}


def _pictures(group: PurificationContext, made: dict[str, Tensors]) -> Tensors:
    """The first images, as the best attack on each leaves them, and purified."""
    some, x = slice(0, PICTURED), group.images.x
    names = [name for name in made if name in ATTACKS]
    best = _strongest({name: made[name]["score"] for name in names})
    attacked = torch.stack([made[name]["x_adv"] for name in names])  # (attacks, B, ...)
    x_adv = attacked[best, torch.arange(len(best))][some].to(x)
    noise = tuple(e[some] for e in group.noise(PICTURE, 0))
    with torch.no_grad():
        clean = group.purifier(x_adv, noise)
        predicted = group.images.classifier(clean, bounded=False).argmax(1)
    return {"pictures": torch.stack([x[some], x_adv, clean.clamp(0, 1)], 1), "said": predicted}


def _strongest(robustness: dict[str, Tensor]) -> Tensor:
    """(N,) int64: the number of the attack whose image is least robust on the attacker's own draws."""
    return torch.stack(list(robustness.values())).argmin(0)


def summarise(
    found: dict[str, Tensors], context: PurificationContext, eps: float
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """``report`` and ``arrays`` of ``Purification``.

    ``report`` holds ``schema``, ``purifier``, ``threat``, ``images``, ``seed``, ``effort``; the three numbers ``average``,
    ``worst`` and ``majority`` under ``clean`` (no attack), for each of ``attacks`` (with ``name``, ``title``,
    ``gradients``), under ``weak`` and ``robust``: of each number the lowest under any weak attack, or any at all, or
    under the attacker's choice among them for each image. ``fixed`` and ``undefended`` with ``clean`` and ``robust``;
    ``says``, what follows, in sentences. All accuracies are ``{accuracy, low, high, correct, count}``.
    """
    y, purifier, effort = context.images.y.cpu(), context.purifier, context.effort
    names = [name for name in found if name in ATTACKS]
    each = {name: accuracies(found[name]["said"], y) for name in (NONE, *names)}

    def under(*kinds: str) -> tuple[dict[str, Any], Tensor]:
        some = [name for name in names if ATTACKS[name].kind in kinds]
        best = _strongest({name: found[name]["score"] for name in some})
        predicted = torch.stack([found[name]["said"] for name in some])  # (attacks, draws, N)
        rows = [accuracies(predicted[best, :, torch.arange(len(y))].T, y), *(each[name] for name in some)]
        return {key: min((row[key] for row in rows), key=lambda value: value["accuracy"]) for key in rows[0]}, best

    def deterministic(name: str) -> dict[str, Any]:
        return {kind: Accuracy(int(right.sum()), len(y)).to_json() for kind, right in found[name].items()}

    robust, best = under(WEAK, EXACT)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "purifier": {"sigma": purifier.sigma, "steps": purifier.steps, "sampler": purifier.sampler},
        "threat": {"norm": context.images.norm, "eps": eps},
        "images": len(y),
        "seed": context.images.seed,
        "effort": asdict(effort),
        "undefended": deterministic(BARE),
        "clean": each[NONE],
        "attacks": [
            {"name": name, "title": ATTACKS[name].named(effort), "gradients": ATTACKS[name].kind, **each[name]}
            for name in names
        ],
        "weak": under(WEAK)[0],
        "robust": robust,
        "fixed": deterministic(FIXED),
    }
    report["says"] = sentences(report)
    arrays = {"label": y, "chosen": best}
    arrays |= {f"{name}.{key}": found[name][key] for name in each for key in ("said", "score")}
    arrays |= {name: found[name]["robust"] for name in (FIXED, BARE)}
    arrays |= {f"{name}_clean": found[name]["clean"] for name in (FIXED, BARE)}
    return report, {name: array.numpy() for name, array in arrays.items()}


def sentences(report: dict[str, Any]) -> list[str]:
    """What the numbers mean, and what they do not."""
    robust, weak, clean, fixed, bare = (report[key] for key in ("robust", "weak", "clean", "fixed", "undefended"))
    times = report["effort"]["submissions"]

    def percent(value: dict[str, Any]) -> str:
        return f"{value['accuracy']:.1%}"

    left = {row["name"]: row["average"]["accuracy"] for row in report["attacks"]}
    exact = min(left[name] for name in left if ATTACKS[name].kind == EXACT)
    shown = ", ".join(f"{ATTACKS[name].short} {left[name]:.1%}" for name in left if ATTACKS[name].kind == WEAK)
    said = [
        f"Without an attack the purified classifier is right on {percent(clean['average'])} of the images, the bare one on "
        f"{percent(bare['clean'])}; under attack the bare one is right on {percent(bare['robust'])}.",
        f"An attacker who may try again leaves {percent(robust['worst'])}: only so many images are right all of {times} "
        "times. That is the number to believe where a request can be repeated.",
        f"An attacker with one try, against unknown noise, leaves {percent(robust['average'])} on average. A majority of "
        f"{times} purifications, at {times} times the cost, is right on {percent(robust['majority'])}.",
        f"If the noise is known, as with a fixed seed, {percent(fixed['robust'])} are left (without an attack "
        f"{percent(fixed['clean'])}): what is above that is luck of the draw, not a boundary moved.",
        f"On average {shown} are left by attacks that do not follow the purifier's true gradient, by those that do "
        f"{exact:.1%}: the difference is gradient masking, not robustness.",
    ]
    if exact >= weak["average"]["accuracy"]:
        said.append(
            "Here exact gradients find no more than attacks without them: they may be too short or too few, so try more "
            "steps and draws before believing the numbers."
        )
    said.append(
        "Nothing here is a certificate: every number is an upper bound, which a stronger attack lowers. For a lower bound "
        "that no attack can break, run sfumato certify."
    )
    return said
