"""Which attacks a protocol consists of, what they are expected to cost, and what they do cost."""

from __future__ import annotations

import time
from typing import Any

from sfumato.attacks import NORMS
from sfumato.attacks.ensemble import MEMBERS
from sfumato.attacks.norms import check_norm
from sfumato.classifiers import Classifier
from sfumato.core.errors import InputError, nearest

PROTOCOLS = ("standard", "screening")
# Expected passes an image, for the time left: attacks end early where they succeed.
EASY, HARD = {"fgsm": 2, "pgd": 20, "apgd": 40, "standard": 60}, {"pgd": 120, "apgd": 300, "standard": 11_600}
OTHERWISE = {"fmn": 600, "sigma-zero": 900, "square": 5000}
MEMBER_SHARES: dict[str, float] = dict(
    zip(MEMBERS, (0.03, 0.26, 0.57, 1.0), strict=True)
)  # of the work, done after each


def plan(norm: str, protocol: str, differentiable: bool) -> list[str]:
    """The names of the attacks, in order."""
    if not differentiable:
        if norm == "L0":
            problem = "no gradients can be taken through the model, and none of the black-box attacks minimises L0"
            raise InputError(f"{problem}: give --norm Linf, L2 or L1")
        return ["square"]
    if norm == "L0":
        return ["sigma-zero", "fmn"]
    return ["fgsm", "pgd", "standard" if protocol == "standard" else "apgd", "fmn"]


class Meter:
    """What a classifier spends: ``read`` gives the passes and seconds since it was read last."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self._last = self._now()

    def _now(self) -> dict[str, Any]:
        spent = self.classifier
        return {"forward": spent.forwards, "backward": spent.backwards, "seconds": time.perf_counter()}

    def read(self) -> dict[str, Any]:
        before, self._last = self._last, self._now()
        return {key: value - before[key] for key, value in self._last.items()}


def main_attack(names: list[str]) -> str:
    """The strongest of a plan: its images are shown."""
    return next(name for name in ("standard", "apgd", "square", "sigma-zero") if name in names)


def check_settings(norm: str, eps: float, count: int, protocol: str) -> None:
    """InputError for what cannot be audited."""
    check_norm(norm, NORMS, "an audit")
    if not 0 < eps < float("inf"):
        raise InputError(f"eps {eps:g} cannot be audited: give a size over 0, in units of pixels from 0 to 1")
    if norm == "Linf" and eps > 1:
        raise InputError(f"eps {eps:g} is larger than the whole range of a pixel, which is 1: give for example 8/255")
    if count < 1:
        raise InputError(f"-n {count} leaves nothing to audit: give 1 or more")
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {protocol!r}: {nearest(protocol, PROTOCOLS)}")
