"""The attacks by name, and the arguments that they share; a new attack is one file with one decorated function.

Every attack is called as ``attack(classifier, x, y, *, norm, eps, targeted, seed, ids, batch_size, ...) -> x_adv``:

Args:
    classifier: to attack; a ``Classifier``.
    x: (B, ...) float pixels in [0, 1], usually (B, C, H, W).
    y: (B,) int64, the true labels, or with ``targeted`` the labels wanted.
    norm: Linf, L2, L1 or L0, whichever of these the attack knows.
    eps: radius, a float or (B,), in units of pixels from 0 to 1. Attacks of minimal norm take none.
    targeted: make the classifier say ``y``, in place of anything but ``y``.
    seed, ids: sample i's random numbers depend on seed and ids[i] (default i) alone, see core/streams.py.
    batch_size: samples in a pass; the classifier's own by default. Attacks of minimal norm always take the classifier's.

Returns:
    (B, ...) of the dtype of ``x``, in [0, 1]. Attacks of a fixed size: in the ball, and for a sample that they cannot fool
    their best attempt. Attacks of minimal norm: the nearest adversarial point found, or ``x`` where there was none.

Raises:
    InputError: a norm that the attack does not know, pixels outside [0, 1], labels, ids or an eps that do not fit.

An attack decorated by ``within_eps`` or ``minimal`` is written as a function of an ``AttackContext``, which holds these
arguments, checked, and of its own settings; it is called as above.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Concatenate

from torch import Tensor

from sfumato.attacks.closest import closest_adversarial
from sfumato.attacks.context import BALLS, AttackContext
from sfumato.core.registry import Registry

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

Attack = Callable[Concatenate["Classifier", Tensor, Tensor, ...], Tensor]
Run = Callable[Concatenate[AttackContext, ...], Tensor]

ATTACKS: Registry[Attack] = Registry("attack")


def within_eps(name: str, norms: Sequence[str] = BALLS, eps: float | None = 8 / 255) -> Callable[[Run], Attack]:
    """Enter an attack of a fixed size; the first of ``norms`` and ``eps`` are its defaults."""
    return _entered(name, norms, {"eps": eps, "batch_size": None}, lambda run, context, own: run(context, **own))


def minimal(name: str, *norms: str) -> Callable[[Run], Attack]:
    """Enter an attack of minimal norm: it gets only samples that do not fool the classifier yet, and each candidate that
    it returns is checked afresh. A setting that is a tensor has the shape of ``x``, one row a sample.
    """
    return _entered(name, norms, {}, closest_adversarial)


def _entered(
    name: str, norms: Sequence[str], more: dict[str, Any], call: Callable[[Run, AttackContext, dict[str, Any]], Tensor]
) -> Callable[[Run], Attack]:
    samples = [inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD) for key in ("classifier", "x", "y")]
    shared = {"norm": norms[0], "targeted": False, "seed": 0, "ids": None} | more

    def enter(run: Run) -> Attack:
        _, *own = inspect.signature(run).parameters.values()
        keywords = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=shared[key]) for key in shared]

        @functools.wraps(run)
        def attack(*args: Any, **options: Any) -> Tensor:
            given = signature.bind(*args, **options).arguments
            settings = {each.name: given.pop(each.name) for each in own if each.name in given}
            return call(run, AttackContext.of(**(shared | given), norms=norms, attack=name), settings)

        signature = inspect.Signature([*samples, *keywords, *own], return_annotation=Tensor)
        attack.__signature__ = signature  # type: ignore[attr-defined]
        return ATTACKS.add(name)(attack)

    return enter
