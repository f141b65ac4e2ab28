"""What purification is worth: four numbers under attacks with exact gradients, beside those of weaker attacks.

Of a random defence one number says little: an image may be right nine times in ten. On the same attacked images are counted

* average: how often one purification, with noise that nobody knew, is classified rightly,
* worst of ten: images that are right all of ten times, for whoever may try again needs one failure (Wang et al. 2024,
  DiffHammer, NeurIPS, "N-evaluation"),
* majority: images whose true class has the most of these ten votes; a tie counts against the defence,

and apart from them the fixed-noise number, of the deterministic defence whose noise the attacker knows (Liu et al. 2024,
arXiv 2404.14309). Every attack comes up with images on draws of its own; what it gives is judged on fresh ones. No number
here is a guarantee.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.attacks import apgd, apgd_targeted, fooled
from sfumato.attacks.batching import checked
from sfumato.attacks.norms import check_norm
from sfumato.classifiers import Classifier
from sfumato.classifiers.accuracy import Accuracy
from sfumato.core.errors import InputError
from sfumato.defences.purification.attacks import CHECK, EXACT, METHODS, PICTURE, WEAK, Effort, Scene, methods
from sfumato.defences.purification.purifier import Purifier, purified

SCHEMA = "sfumato.purification/1"
GROUP = 16  # images at once, and what a stop can lose of one attack
PICTURED = 6  # images to show
NONE = "none"
_SHORT = {"transfer": "transfer", "bpda": "BPDA", "one-step": "surrogate"}
_FIXED = 0xF1  # mixed into the seed of the noise that the attacker knows

Compute = Callable[[], dict[str, Tensor]]
Keep = Callable[[str, Compute], dict[str, Tensor]]  # name of a part, how to compute it -> the part, maybe from a disk


@dataclass(frozen=True)
class Share:
    """The mean over ``count`` images of the share of draws that are right; ``right`` is their sum."""

    right: float
    count: int

    @property
    def value(self) -> float:
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """That of as many images right or wrong each, which vary no less; rounded outward."""
        low, high = int(np.floor(self.right + 1e-9)), int(np.ceil(self.right - 1e-9))
        return Accuracy(low, self.count).interval[0], Accuracy(high, self.count).interval[1]

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {"accuracy": self.value, "low": low, "high": high, "correct": self.right, "count": self.count}


def numbers(said: Tensor, y: Tensor) -> dict[str, Any]:
    """Average, worst and majority of the labels ``said`` (draws, N) of images whose labels are ``y`` (N,)."""
    right = said == y  # (draws, N)
    count = len(y)
    votes = torch.stack([(said == label).sum(0) for label in range(int(max(said.max(), y.max())) + 1)])  # (K, N)
    mine = votes.gather(0, y[None])[0]
    rival = votes.scatter(0, y[None], -1).amax(0)
    return {
        "average": Share(float(right.double().mean(0).sum()), count).to_json(),
        "worst": Accuracy(int(right.all(0).sum()), count).to_json(),
        "majority": Accuracy(int((mine > rival).sum()), count).to_json(),
    }


@dataclass(frozen=True)
class Purification:
    """What was found.

    Attributes:
        report: JSON values, see ``summarise``.
        arrays: ``label`` (N,), ``none.said`` and for each attack A ``A.said`` (draws, N), ``A.score`` (N,) on the attacker's
            draws; ``chosen`` (N,) which attack did best there; ``fixed``, ``fixed_clean``, ``bare``, ``bare_clean`` (N,) bool.
        pictures: (M, 3, C, H, W), clean, attacked and attacked and purified.
        pictured: (M,) what the defence says of the last.
    """

    report: dict[str, Any]
    arrays: dict[str, np.ndarray]
    pictures: Tensor
    pictured: Tensor


def purification_protocol(
    classifier: Classifier,
    purifier: Purifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    eps: float = 8 / 255,
    effort: Effort | None = None,
    seed: int = 0,
    ids: Sequence[int] | None = None,
    keep: Keep | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Purification:
    """Attack a classifier behind a purifier, and report the four numbers.

    Args:
        classifier: the bare one; its gradients are needed.
        purifier: in front of it.
        x: (N, C, H, W) pixels in [0, 1].
        y: (N,) true labels.
        norm: Linf, L2 or L1.
        eps: radius in that norm.
        effort: how hard to try.
        seed, ids: of everything random; that of image i depends on seed and ids[i] (default i) alone.
        keep: called with the name of each part and how to compute it, for what goes on after a stop.
        progress: called with (work done, work in all).

    Raises:
        InputError: images, labels, a norm or an eps that do not fit; a classifier without gradients.
    """
    effort = effort or Effort()
    check_norm(norm, ("Linf", "L2", "L1"), "an attack on a purifier")
    if not len(x) or not 0 < eps < float("inf"):
        raise InputError(f"{len(x)} images and eps {eps:g}: give 1 image or more, and a size over 0")
    x, y, places = checked(x, y, ids, eps)
    classifier.logits(x[:1])  # what is wrong with the images or the model is said here
    if int(y.min()) < 0 or int(y.max()) >= classifier.classes:
        raise InputError(
            f"labels run from {int(y.min())} to {int(y.max())}, the classifier has {classifier.classes} classes"
        )
    which = methods(purifier)
    work = _Work(keep or (lambda name, compute: compute()), progress, which, effort, purifier, len(x))
    found: dict[str, list[dict[str, Tensor]]] = {}
    with classifier.ready():
        for start in range(0, len(x), GROUP):
            part = slice(start, start + GROUP)
            scene = Scene(
                classifier, purifier, x[part], y[part], places[part].tolist(), norm, eps, seed, effort
            )  # fmt: skip
            name = f"{start // GROUP}"
            tried: dict[str, dict[str, Tensor]] = {}
            for each in (NONE, *which):
                tried[each] = work.part(
                    f"{each}-{name}", each, len(scene.x), lambda each=each, scene=scene: _tried(scene, each)
                )
                found.setdefault(each, []).append(tried[each])
            for each, known in (("bare", False), ("fixed", True)):
                made = work.part(
                    f"{each}-{name}", each, len(scene.x), lambda scene=scene, known=known: _deterministic(scene, known)
                )
                found.setdefault(each, []).append(made)
            if start == 0:
                shown = work.part(
                    f"pictures-{name}", NONE, PICTURED, lambda scene=scene, tried=tried: _pictures(scene, tried)
                )
    joined = {
        name: {k: torch.cat([part[k] for part in parts], -1 if k == "said" else 0) for k in parts[0]}
        for name, parts in found.items()
    }
    report, arrays = summarise(joined, y.cpu(), which, purifier, norm, eps, effort, seed)
    return Purification(report, arrays, shown["pictures"], shown["said"])


# -- parts ------------------------------------------------------------------------------------------------------------


class _Work:
    """Runs parts, and tells how far all have come, in evaluations of the generator's network that are expected."""

    def __init__(
        self,
        keep: Keep,
        progress: Callable[[int, int], None] | None,
        which: Sequence[str] | dict[str, Any],
        effort: Effort,
        purifier: Purifier,
        count: int,
    ) -> None:
        self.keep, self.progress, self.effort, self.steps = keep, progress, effort, purifier.steps
        names = [NONE, *which, "bare", "fixed"]
        self.total = sum(self._cost(name) for name in names) * count + self._cost(NONE) * PICTURED
        self.done = 0.0

    def part(self, name: str, kind: str, count: int, compute: Compute) -> dict[str, Tensor]:
        found = {key: tensor.detach().cpu() for key, tensor in self.keep(name, compute).items()}
        self.done += self._cost(kind) * count
        if self.progress is not None:
            self.progress(min(round(self.done), round(self.total)), round(self.total))
        return found

    def _cost(self, kind: str) -> float:
        effort = self.effort
        if kind == "bare":
            return 1.0
        if kind == "fixed":
            return 4 * self.steps * effort.fixed_steps * (1 + effort.targets)
        judged = self.steps * (effort.submissions + effort.draws)
        return judged + (METHODS[kind].cost(effort, self.steps) if kind in METHODS else 0)


def _tried(scene: Scene, name: str) -> dict[str, Tensor]:
    """One attack on a group: what it gives, how that stands on its own draws, and what the defence says on fresh ones."""
    x_adv = scene.x if name == NONE else METHODS[name].run(scene)
    said = scene.said(x_adv, CHECK, scene.effort.submissions).argmax(2)
    return {"x_adv": x_adv, "score": scene.score(x_adv).double(), "said": said}


def _deterministic(scene: Scene, known: bool) -> dict[str, Tensor]:
    """The bare classifier, or the defence with noise that is known: right without an attack, and still after APGD and
    targeted APGD, the first two of the standard ensemble."""
    target = scene.classifier
    if known:
        target = purified(scene.classifier, scene.purifier, fixed=True, seed=scene.seed ^ _FIXED)
    clean = ~fooled(target, scene.x, scene.y)
    standing = clean.clone()
    common: dict[str, Any] = {
        "norm": scene.norm,
        "eps": scene.eps,
        "seed": scene.seed,
        "steps": scene.effort.fixed_steps,
    }
    for attack, more in ((apgd, {}), (apgd_targeted, {"targets": scene.effort.targets})):
        rows = standing.nonzero().flatten()
        if len(rows):
            ids = torch.tensor(scene.ids)[rows.cpu()]
            found = attack(target, scene.x[rows], scene.y[rows], ids=ids, **common, **more)
            standing[rows] = ~fooled(target, found, scene.y[rows])
    return {"clean": clean, "robust": standing}


def _pictures(scene: Scene, tried: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The first images, as the best attack on each leaves them, and purified."""
    some = slice(0, PICTURED)
    best = _chosen({name: each["score"] for name, each in tried.items() if name != NONE})
    attacked = torch.stack([each["x_adv"] for name, each in tried.items() if name != NONE])  # (attacks, B, ...)
    x_adv = attacked[best, torch.arange(len(best))][some].to(scene.x)
    noise = tuple(e[some] for e in scene.noise(PICTURE, 0))
    with torch.no_grad():
        clean = scene.purifier(x_adv, noise)
        said = scene.classifier(clean, bounded=False).argmax(1)
    return {"pictures": torch.stack([scene.x[some], x_adv, clean.clamp(0, 1)], 1), "said": said}


def _chosen(scores: dict[str, Tensor]) -> Tensor:
    """(N,) int64: the number of the attack whose image stands worst on the attacker's own draws."""
    return torch.stack(list(scores.values())).argmin(0)


# -- what it says -----------------------------------------------------------------------------------------------------------


def summarise(
    found: dict[str, dict[str, Tensor]],
    y: Tensor,
    which: Sequence[str] | dict[str, Any],
    purifier: Purifier,
    norm: str,
    eps: float,
    effort: Effort,
    seed: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """``report`` and ``arrays`` of ``Purification``.

    ``report`` holds ``schema``, ``purifier``, ``threat``, ``images``, ``seed``, ``effort``; the three numbers ``average``,
    ``worst`` and ``majority`` under ``clean`` (no attack), for each of ``attacks`` (with ``name``, ``title``,
    ``gradients``), under ``weak`` and ``robust``: of each number the lowest that any weak attack, or any at all, leaves, or that
    the attacker's choice among them for each image does. ``fixed`` and ``undefended`` with ``clean`` and ``robust``; ``says``, what follows, in sentences. All accuracies are ``{accuracy, low,
    high, correct, count}``.
    """
    count = len(y)

    each = {name: numbers(found[name]["said"], y) for name in (NONE, *which)}

    def best_of(kinds: Sequence[str]) -> tuple[dict[str, Any], Tensor]:
        names = [name for name in which if METHODS[name].kind in kinds]
        best = _chosen({name: found[name]["score"] for name in names})
        said = torch.stack([found[name]["said"] for name in names])  # (attacks, draws, N)
        rows = [numbers(said[best, :, torch.arange(count)].T, y), *(each[name] for name in names)]
        return {key: min((row[key] for row in rows), key=lambda value: value["accuracy"]) for key in rows[0]}, best

    def fixed(name: str) -> dict[str, Any]:
        return {kind: Accuracy(int(right.sum()), count).to_json() for kind, right in found[name].items()}

    robust, best = best_of((WEAK, EXACT))
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "purifier": {"sigma": purifier.sigma, "steps": purifier.steps, "sampler": purifier.sampler},
        "threat": {"norm": norm, "eps": eps},
        "images": count,
        "seed": seed,
        "effort": asdict(effort),
        "undefended": fixed("bare"),
        "clean": each[NONE],
        "attacks": [
            {"name": name, "title": METHODS[name].title(effort), "gradients": METHODS[name].kind,
             **each[name]}
            for name in which
        ],
        "weak": best_of((WEAK,))[0],
        "robust": robust,
        "fixed": fixed("fixed"),
    }  # fmt: skip
    report["says"] = sentences(report)
    arrays = {"label": y, "chosen": best}
    arrays |= {f"{name}.{key}": found[name][key] for name in (NONE, *which) for key in ("said", "score")}
    arrays |= {name: found[name]["robust"] for name in ("fixed", "bare")}
    arrays |= {f"{name}_clean": found[name]["clean"] for name in ("fixed", "bare")}
    return report, {name: array.numpy() for name, array in arrays.items()}


def sentences(report: dict[str, Any]) -> list[str]:
    """What the numbers say, and what they do not."""
    robust, weak, clean, fixed = report["robust"], report["weak"], report["clean"], report["fixed"]
    times = report["effort"]["submissions"]

    def percent(value: dict[str, Any]) -> str:
        return f"{value['accuracy']:.1%}"

    said = [
        f"Without an attack the purified classifier is right on {percent(clean['average'])} of the images, the bare one on "
        f"{percent(report['undefended']['clean'])}; under attack the bare one is right on {percent(report['undefended']['robust'])}.",
        f"An attacker who may try again leaves {percent(robust['worst'])}: only so many images are right all of {times} times. "
        "That is the number to believe where a request can be repeated.",
        f"An attacker with one try, against noise that nobody knows, leaves {percent(robust['average'])} on average. A majority of "
        f"{times} purifications, at {times} times the cost, is right on {percent(robust['majority'])}.",
        f"If the noise is known, as with a fixed seed, {percent(fixed['robust'])} are left (without an attack "
        f"{percent(fixed['clean'])}): what is above that is luck of the draw, not a boundary moved.",
    ]
    left = {row["name"]: row["average"]["accuracy"] for row in report["attacks"]}
    exact = min(left[name] for name in left if METHODS[name].kind == EXACT)
    shown = ", ".join(f"{_SHORT[name]} {left[name]:.1%}" for name in left if METHODS[name].kind == WEAK)
    said.append(
        f"On average {shown} are left by attacks that do not follow the purifier's true gradient, by those that do {exact:.1%}: "
        "what a weaker attack leaves beyond that is no robustness."
    )
    if exact >= weak["average"]["accuracy"]:
        said.append(
            "Here exact gradients find no more than attacks without them: they may be too short or too few, so try more "
            "steps and draws before believing the numbers."
        )
    said.append(
        "Nothing here is a certificate: every number is an upper bound, which a stronger attack lowers. What no attack can "
        "lower is proved by sfumato certify."
    )
    return said
