"""The standard ensemble: APGD-CE, APGD-T, FAB-T and Square with the budgets of AutoAttack's standard version.

After Croce & Hein 2020a (arXiv 2003.01690, section 5; for L1 Croce & Hein 2021, section 5). What makes it faster than
running them one after the other changes no verdict: a sample leaves in the very step in which it is fooled, batches are
filled up from the samples that are still robust, only the input's gradient is computed, and Square does not ask what it
already knows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Unpack

import torch
from torch import Tensor

from sfumato.attacks.apgd import apgd, apgd_targeted
from sfumato.attacks.context import AttackContext, Shared
from sfumato.attacks.fab import fab
from sfumato.attacks.registry import Attack, within_eps
from sfumato.attacks.square import square
from sfumato.attacks.verify import fooled

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

MEMBERS = ("apgd-ce", "apgd-t", "fab-t", "square")
ROBUST, CLEAN = "", "clean"
_ENTRIES = 2**25  # of all samples together in one wave: APGD keeps about twelve numbers for each, 1.6 GB

Progress = Callable[[str, int, int], None]  # attack, samples attacked, samples that are still robust afterwards


class Verdict(NamedTuple):
    """What the ensemble found."""

    x_adv: Tensor  # (B, ...)
    fooled_by: list[str]  # B names: "clean" where misclassified from the start, a name of MEMBERS, or "" where robust

    @property
    def robust(self) -> Tensor:
        """(B,) bool: fooled by none."""
        return torch.tensor([name == ROBUST for name in self.fooled_by])


@within_eps("standard")
def standard_attack(context: AttackContext) -> Tensor:
    """``standard`` as an attack like the others: only its ``x_adv``."""
    return _in_turn(context, None).x_adv


def standard(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    eps: float | Tensor = 8 / 255,
    progress: Progress | None = None,
    **shared: Unpack[Shared],
) -> Verdict:
    """The four attacks in turn, each on the samples that are still robust.

    APGD on the cross-entropy, 100 steps (L1: 5 restarts); APGD-T toward 9 classes, 100 steps each (L1: 5 classes); FAB-T
    toward 9 classes, 100 steps each; Square with 5000 queries. With fewer classes there are as many targets as wrong
    classes, and below 4 (targeted) and 3 classes the logits' ratio gives way to their difference.

    Args: as every attack, see registry.py, with every member aiming at ``y`` where ``targeted``, and
        progress: called after each member with its name, the samples it attacked, and how many are still robust.

    Returns:
        The adversarial samples, each confirmed by a fresh forward pass (elsewhere the last member's best attempt), and
        which attack fooled each.
    """
    context = AttackContext.of(classifier, x, y, norm=norm, eps=eps, attack="the standard ensemble", **shared)
    return _in_turn(context, progress)


def _in_turn(context: AttackContext, progress: Progress | None) -> Verdict:
    """In waves of as many samples as memory holds."""
    x = context.x
    size = max(1, _ENTRIES // max(1, x[:1].numel()))
    waves = [_wave(context[start : start + size], progress) for start in range(0, max(1, len(x)), size)]
    return Verdict(torch.cat([wave.x_adv for wave in waves]), [name for wave in waves for name in wave.fooled_by])


def _wave(context: AttackContext, progress: Progress | None) -> Verdict:
    """The four attacks on samples that memory holds together."""
    classifier, y, targeted = context.classifier, context.y, context.targeted
    x_adv, fooled_by = context.x.clone(), [ROBUST] * len(context)
    rows = torch.arange(len(context), device=y.device)

    def enter(hit: Tensor, name: str) -> Tensor:
        for row in rows[hit].tolist():
            fooled_by[row] = name
        return rows[~hit]

    with classifier.ready():
        rows = enter(fooled(classifier, context.x, y, targeted), CLEAN)
        for name in MEMBERS:
            if len(rows) == 0:
                break
            some = context[rows]
            found = _member(name, context.norm)(classifier, some.x, some.y, **some.keywords())
            hit = fooled(classifier, found, some.y, targeted)
            taken = hit if name == "fab-t" else torch.ones_like(hit)  # FAB returns x where it finds nothing
            x_adv[rows[taken]] = found[taken]
            attacked, rows = len(rows), enter(hit, name)
            if progress is not None:
                progress(name, attacked, len(rows))
    return Verdict(x_adv, fooled_by)


def _member(name: str, norm: str) -> Attack:
    """A member of the ensemble with its budget."""
    members = {
        "apgd-ce": partial(apgd, steps=100, restarts=5 if norm == "L1" else 1),
        "apgd-t": partial(apgd_targeted, steps=100, targets=5 if norm == "L1" else 9),
        "fab-t": partial(fab, steps=100, targets=9),
        "square": partial(square, queries=5000),
    }
    return members[name]
