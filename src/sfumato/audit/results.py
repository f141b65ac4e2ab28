"""What an audit found, image by image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato.attacks.ensemble import MEMBERS
from sfumato.classifiers.accuracy import Accuracy

TITLES = {
    "fgsm": "FGSM, one step",
    "pgd": "PGD, 40 steps",
    "apgd": "APGD on the cross-entropy, 100 steps",
    "standard": "standard ensemble",
    "fmn": "FMN, 200 steps",
    "sigma-zero": "sigma-zero, 300 steps",
    "square": "Square, 5000 queries",
}
MEMBER_TITLES = {
    "apgd-ce": "APGD-CE, 100 steps",
    "apgd-t": "then APGD-T, 9 targets",
    "fab-t": "then FAB-T, 9 targets",
    "square": "then Square, 5000 queries",
}


@dataclass(frozen=True)
class Member:
    """What one attack of the standard ensemble did: each is given the images that the ones before it did not fool."""

    attacked: int
    fooled: int
    forward: int  # passes
    backward: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What one attack did; an entry for each of the N images, in the audit's order.

    Images that are misclassified from the start are not attacked: they count as fooled, at distance 0.
    """

    name: str
    fooled: Tensor  # (N,) bool: inside ball and box, by a fresh forward pass
    fooled_8bit: Tensor  # (N,) bool: still so with the pixels rounded to 256 values
    predicted: Tensor  # (N,) int64: of what the attack returned
    confidence: Tensor  # (N,) the probability of that
    distance: Tensor  # (N,) the norm of the perturbation that fools; infinite where none was found at any distance
    margin: Tensor  # (N,) of what the attack returned: over 0 is another class
    fooled_by: Tensor  # (N,) int64: 1 + the number of the ensemble's member that fooled it; 0 for none
    attacked: int  # images
    forward: int  # passes
    backward: int
    seconds: float
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return TITLES.get(self.name, self.name)

    @property
    def robust(self) -> Tensor:
        """(N,) bool."""
        return ~self.fooled

    def fooled_by_member(self, member: str) -> Tensor:
        """(N,) bool: by this member of the ensemble."""
        return self.fooled_by == 1 + MEMBERS.index(member)


class Pictured(NamedTuple):
    """An image to show."""

    place: int  # in the audit's order
    clean: Tensor  # (C, H, W) in [0, 1]
    adversarial: Tensor  # (C, H, W) what the main attack returned, whether it fools or not


@dataclass(frozen=True)
class Audit:
    """All of it. ``rows`` are the images' numbers in the data; every other (N,) array is in their order."""

    name: str
    classifier_hash: str
    weights: str  # of them alone, as a classifier that is hardened keeps them of the one it came from
    labels: tuple[str, ...]
    data: dict[str, Any]
    norm: str
    eps: float
    seed: int
    protocol: str  # "standard", "screening" or "black-box"
    main: str  # the name of the strongest attack
    rows: np.ndarray  # (N,)
    y: Tensor  # (N,) int64
    clean: Tensor  # (N,) int64: predictions without an attack
    clean_confidence: Tensor  # (N,)
    clean_margin: Tensor  # (N,)
    outcomes: dict[str, Outcome]
    probes: dict[str, Any]  # of probes.py
    invariance: list[dict[str, Any]] | None  # of invariance.py
    unnoticed: Tensor  # (rows of that, N) bool: right under that change
    pictured: list[Pictured]
    passes: dict[str, int]  # of the whole audit, "forward" and "backward"
    seconds: dict[str, float]  # by part
    stamp: dict[str, Any]

    @property
    def right(self) -> Tensor:
        """(N,) bool: classified rightly without an attack."""
        return self.clean == self.y

    @property
    def robust(self) -> Tensor:
        """(N,) bool: no attack of the protocol fools it within eps."""
        fooled = torch.stack([outcome.fooled for outcome in self.outcomes.values()])  # (attacks, N)
        return self.right & ~fooled.any(0)

    @property
    def robust_accuracy(self) -> Accuracy:
        """The worst case of each image."""
        return Accuracy(int(self.robust.sum()), len(self.y))

    @property
    def clean_accuracy(self) -> Accuracy:
        return Accuracy(int(self.right.sum()), len(self.y))

    @property
    def attacked_into(self) -> Tensor:
        """(N,) int64: the class an attack turned the image into, by the strongest that did; -1 where there is none."""
        into = torch.full_like(self.y, -1)
        for name in sorted(self.outcomes, key=lambda name: name == self.main):  # the main attack writes last
            outcome = self.outcomes[name]
            into = torch.where(outcome.fooled & self.right, outcome.predicted, into)
        return into

    @property
    def distance(self) -> Tensor:
        """(N,) the smallest perturbation that any attack found; 0 for misclassified images, infinite where none."""
        return torch.stack([outcome.distance for outcome in self.outcomes.values()]).amin(0)

    def members(self) -> dict[str, Accuracy]:
        """Accuracy after each member of the standard ensemble; empty for the other protocols."""
        if "standard" not in self.outcomes:
            return {}
        outcome, found = self.outcomes["standard"], {}
        for place, name in enumerate(MEMBERS, start=1):  # fooled by nobody in particular (0): before the first
            found[name] = Accuracy(int((~(outcome.fooled & (outcome.fooled_by <= place))).sum()), len(self.y))
        return found
