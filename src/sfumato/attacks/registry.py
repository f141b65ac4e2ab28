"""The attacks by name; a new attack is one file with one decorated function.

Every attack has the signature ``attack(classifier, x, y, *, norm, eps, targeted, seed, ids, ...) -> x_adv``:

* ``x`` (B, ...) float pixels in [0, 1], usually (B, C, H, W); ``y`` (B,) int64, the true labels, or with
  ``targeted=True`` the labels wanted; ``x_adv`` has the shape and dtype of ``x`` and lies in [0, 1].
* Attacks of a fixed size take ``eps``, a float or a (B,) tensor in [0, 1] units, and return for a sample that they cannot
  fool their best attempt. Attacks of minimal norm take none and return the nearest adversarial they found, or ``x``.
* Randomness belongs to a sample: it depends on ``seed`` and the sample's number in ``ids`` alone (streams.py).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sfumato.core.registry import Registry

Attack = Callable[..., Tensor]

ATTACKS: Registry[Attack] = Registry("attack")
