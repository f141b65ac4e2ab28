"""The standard ensemble: APGD-CE, APGD-T, FAB-T and Square with the budgets of AutoAttack's standard version.

After Croce & Hein 2020a (arXiv 2003.01690, section 5; for L1 Croce & Hein 2021, section 5). What makes it faster than
running them one after the other changes no verdict: a sample leaves in the very step in which it falls, batches are
filled up from the samples that still stand, only the input's gradient is computed, and Square does not ask what it
already knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sfumato.attacks.apgd import apgd, apgd_targeted
from sfumato.attacks.batching import checked
from sfumato.attacks.fab import fab
from sfumato.attacks.norms import check_norm
from sfumato.attacks.registry import ATTACKS
from sfumato.attacks.square import square
from sfumato.attacks.verify import fooled

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

MEMBERS = ("apgd-ce", "apgd-t", "fab-t", "square")
STANDING, CLEAN = "", "clean"
_ENTRIES = 2**25  # of all samples together in one wave: APGD keeps about twelve numbers for each, 1.6 GB

Progress = Callable[[str, int, int], None]  # attack, samples attacked, samples that still stand afterwards


class Verdict(NamedTuple):
    """What the ensemble found."""

    x_adv: Tensor  # (B, ...)
    felled_by: list[str]  # B names: "clean" where misclassified from the start, a name of MEMBERS, or "" where standing

    @property
    def robust(self) -> Tensor:
        """(B,) bool: still standing."""
        return torch.tensor([name == STANDING for name in self.felled_by])


@ATTACKS.add("standard")
def standard_attack(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    eps: float | Tensor = 8 / 255,
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """``standard`` as an attack like the others: only its ``x_adv``."""
    return standard(
        classifier, x, y, norm=norm, eps=eps, targeted=targeted, seed=seed, ids=ids, batch_size=batch_size
    ).x_adv


def standard(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    eps: float | Tensor = 8 / 255,
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """The four attacks in turn, each on the samples that still stand.

    APGD on the cross-entropy, 100 steps (L1: 5 restarts); APGD-T toward 9 classes, 100 steps each (L1: 5 classes); FAB-T
    toward 9 classes, 100 steps each; Square with 5000 queries. With fewer classes there are as many targets as wrong
    classes, and below 4 (targeted) and 3 classes the logits' ratio gives way to their difference.

    Args:
        classifier: to attack; deterministic.
        x: (B, ...) pixels in [0, 1].
        y: (B,) true labels, or with ``targeted`` the labels wanted.
        norm: Linf, L2 or L1.
        eps: radius, a float or (B,).
        targeted: every member aims at ``y``.
        seed, ids: sample i's random numbers depend on seed and ids[i] (default i) alone.
        batch_size: samples in a pass; the classifier's own by default.
        progress: called after each member with its name, the samples it attacked, and how many still stand.

    Returns:
        The adversarial samples, each confirmed by a fresh forward pass (elsewhere the last member's best attempt), and
        which attack felled each.
    """
    check_norm(norm, ("Linf", "L2", "L1"), "the standard ensemble")
    x, y, ids = checked(x, y, ids, eps)
    size = max(1, _ENTRIES // max(1, x[:1].numel()))
    if len(x) > size:
        radius = torch.as_tensor(eps, dtype=x.dtype, device=x.device).reshape(-1).expand(len(x))
        waves = [
            standard(classifier, *part, norm=norm, eps=own, targeted=targeted, seed=seed, ids=numbers,
                     batch_size=batch_size, progress=progress)
            for *part, own, numbers in zip(x.split(size), y.split(size), radius.split(size), ids.split(size), strict=True)
        ]  # fmt: skip
        return Verdict(torch.cat([wave.x_adv for wave in waves]), [name for wave in waves for name in wave.felled_by])
    x_adv, felled_by = x.clone(), [STANDING] * len(x)
    with classifier.ready():
        rows = _felled(fooled(classifier, x, y, targeted), torch.arange(len(x), device=x.device), CLEAN, felled_by)
        for name in MEMBERS:
            if len(rows) == 0:
                break
            radius = eps if isinstance(eps, float) or torch.as_tensor(eps).numel() == 1 else torch.as_tensor(eps)[rows]
            found = _run(name, classifier, x[rows], y[rows], norm, radius, targeted, seed, ids[rows], batch_size)
            fell = fooled(classifier, found, y[rows], targeted)
            taken = fell if name == "fab-t" else torch.ones_like(fell)  # FAB returns x where it finds nothing
            x_adv[rows[taken]] = found[taken]
            attacked, rows = len(rows), _felled(fell, rows, name, felled_by)
            if progress is not None:
                progress(name, attacked, len(rows))
    return Verdict(x_adv, felled_by)


def _felled(fell: Tensor, rows: Tensor, name: str, felled_by: list[str]) -> Tensor:
    """Enter who felled which; returns the rows that still stand."""
    for row in rows[fell].tolist():
        felled_by[row] = name
    return rows[~fell]


def _run(
    name: str,
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    norm: str,
    eps: float | Tensor,
    targeted: bool,
    seed: int,
    ids: Tensor,
    batch_size: int | None,
) -> Tensor:
    common = {"norm": norm, "eps": eps, "targeted": targeted, "seed": seed, "ids": ids, "batch_size": batch_size}
    if name == "apgd-ce":
        return apgd(classifier, x, y, **common, steps=100, restarts=5 if norm == "L1" else 1)
    if name == "apgd-t":
        return apgd_targeted(classifier, x, y, **common, steps=100, targets=5 if norm == "L1" else 9)
    if name == "fab-t":
        return fab(classifier, x, y, **common, steps=100, targets=9)
    return square(classifier, x, y, **common, queries=5000)
