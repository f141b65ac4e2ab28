"""Measurements on a classifier that tell whether attacks on it can be believed; flags.py judges them.

After the checklists of Athalye et al. 2018 (arXiv 1802.00420, section 3.1), Carlini et al. 2019 (arXiv 1902.06705,
section 5) and AutoAttack's flags; the planted example after Zimmermann et al. 2022 (arXiv 2206.13991).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.attacks import apgd, fooled, pgd
from sfumato.attacks.batching import random_start
from sfumato.attacks.losses import cross_entropy, margin
from sfumato.attacks.norms import flat, per_sample, project_onto
from sfumato.classifiers import Classifier
from sfumato.core.streams import streams_for

PROBED = 32  # images, all classified rightly
PLANTED = 12  # of them get a planted example: each is attacked by itself
SINGLE = 8  # of them are looked at alone
DRAWS = 64  # random perturbations an image
STEPS = 40  # of PGD and APGD
_RAISED = 0.9  # of the way from the clean margin to the best random one lies the planted threshold
_SALT = 7000


class Probed(NamedTuple):
    """What is measured: images that the classifier takes for what they are, and the audit's threat.

    Args:
        classifier: any.
        x: (B, C, H, W) pixels; B of 0 measures nothing.
        y: (B,) their labels.
        ids: (B,) their numbers, for the random streams.
        norm, eps: of the audit.
        seed: of everything random.
    """

    classifier: Classifier
    x: Tensor
    y: Tensor
    ids: Tensor
    norm: str
    eps: float
    seed: int

    def fooled(self, attack: Callable[..., Tensor], **settings: Any) -> Tensor:
        """(B,) bool: by an attack of 40 steps."""
        x_adv = attack(*self[:3], norm=self.norm, seed=self.seed, ids=self.ids, steps=STEPS, **settings)
        return fooled(self.classifier, x_adv, self.y)


def probe(it: Probed, differentiable: bool) -> dict[str, Any]:
    """All measurements, as JSON values by name; a name is missing where it does not apply.

    ``differentiable``: whether gradients can be taken.
    """
    classifier, x, y = it[:3]
    if len(x) == 0:
        return {}
    logits = classifier.logits(x)
    found: dict[str, Any] = {
        "count": len(x),
        "repeated": _difference(logits, classifier.logits(x)),
        "alone": _difference(logits[:SINGLE], torch.cat([classifier.logits(one[None]) for one in x[:SINGLE]])),
        "softmax": _softmax_rows(logits),
    }
    if not differentiable:
        return found
    found["gradients"] = {
        "cross-entropy": _without_gradient(classifier, x, lambda z: cross_entropy(z, y)),
        "margin": _without_gradient(classifier, x, lambda z: margin(z, y)),
    }
    if it.norm == "L0":
        return found
    hit, hit_far = it.fooled(pgd, eps=it.eps), it.fooled(pgd, eps=2 * it.eps)
    found["larger eps"] = {"robust": int((~hit).sum()), "robust at twice": int((~hit_far).sum())}
    found["unbounded"] = {"robust": _robust_unbounded(it)}
    best = []
    for image, label, number in zip(x, y, it.ids.tolist(), strict=True):
        drawn = margin(classifier.logits(perturbed(image, it.norm, it.eps, it.seed, number)), label.expand(DRAWS))
        best.append(float(drawn.max()))
    noisy = [most > 0 for most in best]
    only = [noise and not other for noise, other in zip(noisy, hit.tolist(), strict=True)]
    found["noise"] = {"fooled": sum(noisy), "fooled by noise alone": sum(only), "draws": DRAWS}
    found["planted"] = _planted(it, margin(logits, y).tolist(), best)
    return found


def perturbed(image: Tensor, norm: str, eps: float, seed: int, number: int) -> Tensor:
    """One image (C, H, W) under random perturbations on the ball's rim: (DRAWS, C, H, W).

    For Linf corners of the cube in blocks of 1, 2, 4 and 8 pixels: coarse noise moves classifiers more than fine noise.
    """
    x = image[None].expand(DRAWS, *image.shape)
    streams = streams_for(x, seed, [DRAWS * number + draw for draw in range(DRAWS)], _SALT)
    radius = x.new_full((DRAWS,), eps)
    if norm != "Linf":
        return random_start(x, norm, radius, streams)
    sign = streams.sign(image.shape).to(x.dtype)
    for block in (2, 4, 8):
        some = torch.arange(DRAWS) % 4 == int(math.log2(block))
        for axis in range(2 if image.ndim > 1 else 1, sign.ndim):
            first = torch.arange(sign.shape[axis], device=x.device) // block * block
            sign[some] = sign[some].index_select(axis, first)
    return project_onto(x, x + per_sample(eps, x) * sign, norm, radius)


class Planted:
    """The classifier as one of two classes: 1 where the margin over ``label`` exceeds ``threshold``, else 0."""

    def __init__(self, classifier: Classifier, label: Tensor, threshold: float) -> None:
        self.classifier, self.label, self.threshold = classifier, label, threshold

    def __call__(self, x: Tensor) -> Tensor:
        over = margin(self.classifier(x), self.label.expand(len(x))) - self.threshold
        return torch.stack([torch.zeros_like(over), over], 1)  # (B, 2)


def _planted(it: Probed, clean: list[float], best: list[float]) -> dict[str, int]:
    """How many planted adversarial examples PGD finds.

    For each image a random perturbation that raises the margin is known; the classifier's threshold is lowered until
    just that one fools it. An attack that follows true gradients climbs far higher than the best of some random draws.
    """
    found = count = 0
    for i in range(min(PLANTED, len(it.x))):
        if best[i] - clean[i] <= 1e-4 * (abs(clean[i]) + 1e-3):  # random perturbations do not change a thing
            continue
        count += 1
        threshold = clean[i] + _RAISED * (best[i] - clean[i])
        lowered = Classifier(Planted(it.classifier, it.y[i], threshold), batch_size=1)
        zero = torch.zeros(1, dtype=torch.int64, device=it.x.device)
        own = it._replace(classifier=lowered, x=it.x[i : i + 1], y=zero, ids=it.ids[i : i + 1])
        found += int(own.fooled(pgd, loss="margin", eps=it.eps).sum())
    return {"found": found, "count": count}


def _robust_unbounded(it: Probed) -> int:
    """Images that are not fooled even when any image at all is allowed."""
    width = flat(it.x).shape[1]
    eps = {"Linf": 1.0, "L2": math.sqrt(width), "L1": float(width)}[it.norm]
    for loss in ("ce", "dlr"):
        if len(it.x):
            robust = ~it.fooled(apgd, eps=eps, loss=loss)
            it = it._replace(x=it.x[robust], y=it.y[robust], ids=it.ids[robust])
    return len(it.x)


def _difference(first: Tensor, second: Tensor) -> dict[str, float]:
    """How far logits (B, K) of the same images are apart, as a share of the largest, and how many labels change."""
    return {
        "difference": float((first - second).abs().max() / first.abs().max().clamp_min(1e-12)),
        "changed": int((first.argmax(1) != second.argmax(1)).sum()),
    }


def _softmax_rows(logits: Tensor) -> int:
    """Rows that are a probability distribution."""
    return int((((logits >= 0) & (logits <= 1)).all(1) & ((logits.sum(1) - 1).abs() < 1e-3)).sum())


def _without_gradient(classifier: Classifier, x: Tensor, loss: Any) -> int:
    """Images at which the loss's gradient is 0 everywhere, or not a number somewhere."""
    slope = flat(classifier.gradient(x, loss)[1])
    return int(((slope == 0).all(1) | ~slope.isfinite().all(1)).sum())
