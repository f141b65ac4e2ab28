"""An audit as one JSON object.

Schema ``sfumato.audit/1``. All accuracies are ``{accuracy, low, high, correct, count}`` with the exact 95 % interval of
Clopper and Pearson; all sizes are in units of pixels in [0, 1].

* ``schema``, ``verdict`` (one sentence), ``protocol`` (standard, screening or black-box), ``seed``
* ``classifier``: ``name``, ``hash`` (of weights, preprocessing and answers), ``weights`` (of them alone), ``classes``, ``labels``
* ``data``: ``name``, ``split``, ``fingerprint``, ``images`` (audited), ``of`` (in the split)
* ``threat``: ``norm``, ``eps``
* ``clean``, ``robust``: accuracies without an attack, and of the worst case of each image
* ``attacks``: for each ``name``, ``title``, ``after`` (the attack whose survivors it was given, or null), ``attacked``
  (images), ``robust``, ``fooled``, ``fooled_8bit`` (still after rounding to 8 bits; null inside the ensemble), and
  ``passes`` = ``{forward, backward}`` an attacked image
* ``curve``: accuracy against eps from one run of an attack of minimal norm, ``attack``, ``eps``, ``accuracy``, ``low``,
  ``high``; null where there is none
* ``minimal_norm``: of the images classified rightly, how many were fooled at any distance (``found``), the ``attack``, and
  the 10, 50 and 90 % ``quantiles`` of the smallest perturbations
* ``classes``: by class ``label``, ``clean``, ``robust``
* ``attacked_into``: ``{from, into, count}``, commonest first
* ``checks``: ``name``, ``light``, ``found``, ``meaning``, ``advice`` (flags.py)
* ``invariance``: accuracies under changes that a person would not notice, each with ``name``, ``bounds`` and ``worst``
  (the single change at which fewest images are right, ``{change, accuracy}``, or null); null for images of 4 channels
* ``gate``: ``min_robust_accuracy`` and ``passed``, or null; ``baseline``: the comparison of compare.py, or null
* ``purification``: the classifier behind a purifier, see ``defences/purification/protocol.py``, or null
* ``passes``: ``forward`` and ``backward`` of the whole audit; ``stamp``: versions and device
* ``seconds``, ``written``: the only entries that differ between two runs of the same command

Per-image arrays are in ``samples.npz``: see ``samples``.
"""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import isfinite
from typing import Any

import numpy as np
import torch
from scipy.stats import beta

from sfumato.audit.flags import RED, Check
from sfumato.audit.results import MEMBER_TITLES, Audit, Member, Outcome
from sfumato.classifiers.accuracy import LEVEL, Accuracy

SCHEMA = "sfumato.audit/1"
CURVE_POINTS = 65
SLACK = 1e-6  # a distance that is eps up to rounding is within eps
QUANTILES = (0.1, 0.5, 0.9)


def summarise(audit: Audit, checks: list[Check], min_robust_accuracy: float | None = None) -> dict[str, Any]:
    """The object described above, without ``baseline``, ``purification``, ``seconds`` and ``written``."""
    known = {"name": audit.name, "hash": audit.classifier_hash, "weights": audit.weights}
    gate = min_robust_accuracy
    return {
        "schema": SCHEMA,
        "verdict": verdict(audit, checks),
        "protocol": audit.protocol,
        "seed": audit.seed,
        "classifier": {**known, "classes": len(audit.labels), "labels": list(audit.labels)},
        "data": {**audit.data, "images": len(audit.y)},
        "threat": {"norm": audit.norm, "eps": audit.eps},
        "clean": audit.clean_accuracy.to_json(),
        "robust": audit.robust_accuracy.to_json(),
        "attacks": [row for outcome in audit.outcomes.values() for row in _attack(audit, outcome)],
        "curve": curve(audit),
        "minimal_norm": _minimal_norm(audit),
        "classes": _classes(audit),
        "attacked_into": _attacked_into(audit),
        "checks": [check.to_json() for check in checks],
        "invariance": audit.invariance,
        "gate": None if gate is None else {"min_robust_accuracy": gate, "passed": passes(audit.robust_accuracy, gate)},
        "passes": audit.passes,
        "stamp": audit.stamp,
    }


def passes(robust: Accuracy, threshold: float) -> bool:
    """Whether the gate lets this through: False only where even the upper bound of the interval is below it."""
    return robust.interval[1] >= threshold


def verdict(audit: Audit, checks: list[Check]) -> str:
    """The result in one sentence."""
    low, high = audit.robust_accuracy.interval
    how = {"standard": "", "screening": " (screening: an upper bound)", "black-box": " (attacked without gradients)"}
    sentence = (
        f"Under {audit.norm} perturbations of up to {size(audit.eps, audit.norm)}, {audit.name} is still right on {audit.robust_accuracy.value:.1%} "
        f"of the images (95% interval {low:.1%} to {high:.1%}, {len(audit.y):,} images){how[audit.protocol]}; "
        f"without an attack on {audit.clean_accuracy.value:.1%}"
    )
    red = [check.name for check in checks if check.light == RED]
    doubt = f"; but do not believe it: {', '.join(red)}" if red else ""
    return f"{sentence}{doubt}."


def size(eps: float, norm: str) -> str:
    """``8/255`` for such fractions of a pixel in Linf, else a decimal number."""
    fraction = Fraction(eps * 255).limit_denominator(4)
    if norm == "Linf" and fraction > 0 and abs(float(fraction) / 255 - eps) < 1e-9:
        return f"{float(fraction):g}/255"
    return f"{eps:.4g}"


def distance_text(value: float, norm: str) -> str:
    """A distance that was measured, to three digits."""
    return f"{255 * value:.3g}/255" if norm == "Linf" else f"{value:.3g}"


def curve(audit: Audit) -> dict[str, Any] | None:
    """Accuracy at eps from 0 to twice the audited one, by FMN."""
    outcome = audit.outcomes.get("fmn")
    if outcome is None:
        return None
    grid = np.linspace(0, 2 * audit.eps, CURVE_POINTS)
    distance = torch.where(audit.right, outcome.distance, -torch.inf).double().numpy()
    points = [Accuracy(int((distance > eps + SLACK).sum()), len(distance)) for eps in grid]
    low, high = intervals(np.array([point.correct for point in points]), len(distance))
    accuracy = [point.value for point in points]
    return {
        "attack": outcome.name,
        "eps": grid.tolist(),
        "accuracy": accuracy,
        "low": low.tolist(),
        "high": high.tolist(),
    }


def intervals(correct: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """``Accuracy.interval`` of many at once."""
    tail = (1 - LEVEL) / 2
    low = beta.ppf(tail, np.maximum(correct, 1), count - correct + 1)
    high = beta.ppf(1 - tail, correct + 1, np.maximum(count - correct, 1))
    return np.where(correct == 0, 0.0, low), np.where(correct == count, 1.0, high)


def samples(audit: Audit) -> dict[str, np.ndarray]:
    """Per-image arrays (N,) by name, for ``samples.npz``.

    ``row`` (in the data), ``label``, ``clean``, ``clean_confidence``, ``clean_margin``, ``robust``, ``attacked_into``, ``distance``, and for
    each attack A ``A.fooled``, ``A.fooled_8bit``, ``A.predicted``, ``A.confidence``, ``A.distance``, ``A.margin``;
    ``standard.fooled_by`` is 1 + the number of the member in ``MEMBERS``, 0 for none. ``unnoticed`` is (rows of
    ``invariance``, N): right under that change.
    """
    found: dict[str, np.ndarray] = {"row": audit.rows.astype(np.int64), "label": audit.y.numpy()}
    for key in ("clean", "clean_confidence", "clean_margin", "robust", "attacked_into", "distance", "unnoticed"):
        found[key] = getattr(audit, key).numpy()
    for name, outcome in audit.outcomes.items():
        for key in ("fooled", "fooled_8bit", "predicted", "confidence", "distance", "margin"):
            found[f"{name}.{key}"] = getattr(outcome, key).numpy()
        if name == "standard":
            found["standard.fooled_by"] = outcome.fooled_by.numpy()
    return found


def _attack(audit: Audit, outcome: Outcome) -> list[dict[str, Any]]:
    """The row of an attack, after those of its members."""

    def row(name: str, title: str, did: Outcome | Member, robust: Accuracy) -> dict[str, Any]:
        passes = {"forward": did.forward / max(did.attacked, 1), "backward": did.backward / max(did.attacked, 1)}
        known = {"name": name, "title": title, "after": None, "attacked": did.attacked, "robust": robust.to_json()}
        return {**known, "fooled": 0, "fooled_8bit": None, "passes": passes}

    rows: list[dict[str, Any]] = []
    for name, robust in audit.members().items() if outcome.name == "standard" else ():
        member = outcome.members.get(name)
        if member is not None and member.attacked:
            after = rows[-1]["name"] if rows else None
            rows.append({**row(name, MEMBER_TITLES[name], member, robust), "after": after, "fooled": member.fooled})
    fooled = outcome.fooled & audit.right
    robust = Accuracy(int((outcome.robust & audit.right).sum()), len(audit.y))
    counts = {"fooled": int(fooled.sum()), "fooled_8bit": int((fooled & outcome.fooled_8bit).sum())}
    return [*rows, {**row(outcome.name, outcome.title, outcome, robust), **counts}]


def _minimal_norm(audit: Audit) -> dict[str, Any] | None:
    name = next((name for name in ("fmn", "sigma-zero") if name in audit.outcomes), None)
    if name is None:
        return None
    # Those that were never fooled are farther than all others: the quantiles are of all images, or null beyond them.
    ordered = audit.outcomes[name].distance[audit.right].double().sort().values.tolist()
    quantiles = {
        f"{share:g}": ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None
        for share in QUANTILES
    }
    plain = {key: value if value is not None and isfinite(value) else None for key, value in quantiles.items()}
    return {"attack": name, "found": sum(map(isfinite, ordered)), "of": len(ordered), "quantiles": plain}


def _classes(audit: Audit) -> list[dict[str, Any]]:
    found = []
    for label in sorted(set(audit.y.tolist())):
        mine = audit.y == label
        clean, robust = (Accuracy(int((good & mine).sum()), int(mine.sum())) for good in (audit.right, audit.robust))
        found.append({"label": audit.labels[label], "clean": clean.to_json(), "robust": robust.to_json()})
    return found


def _attacked_into(audit: Audit) -> list[dict[str, Any]]:
    pairs = Counter(
        (y, into) for y, into in zip(audit.y.tolist(), audit.attacked_into.tolist(), strict=True) if into >= 0
    )
    return [
        {"from": audit.labels[y], "into": audit.labels[into], "count": count}
        for (y, into), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    ]
