"""Attacks on classifiers: pure functions from pixels to pixels, each in its own file, by name in ``ATTACKS``.

>>> import torch
>>> from sfumato.classifiers import Classifier
>>> classifier = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
>>> x = torch.rand(4, 1, 8, 8)
>>> x_adv = pgd(classifier, x, classifier.predict(x), norm="Linf", eps=8 / 255)
>>> x_adv.shape, bool(((x_adv - x).abs() <= 8 / 255 + 1e-6).all())
(torch.Size([4, 1, 8, 8]), True)
"""

from __future__ import annotations

from sfumato.attacks.apgd import apgd, apgd_targeted
from sfumato.attacks.carlini_wagner import carlini_wagner
from sfumato.attacks.corruptions import corruptions
from sfumato.attacks.ddn import ddn
from sfumato.attacks.deepfool import deepfool
from sfumato.attacks.ensemble import Verdict, standard
from sfumato.attacks.fab import fab
from sfumato.attacks.fgsm import fgsm, gradient_ascent
from sfumato.attacks.fmn import fmn
from sfumato.attacks.hop_skip_jump import hop_skip_jump
from sfumato.attacks.lbfgs import lbfgs
from sfumato.attacks.losses import LOSSES
from sfumato.attacks.norms import NORMS
from sfumato.attacks.pgd import pgd
from sfumato.attacks.registry import ATTACKS, Attack
from sfumato.attacks.sigma_zero import sigma_zero
from sfumato.attacks.spatial import spatial
from sfumato.attacks.square import square
from sfumato.attacks.universal import universal
from sfumato.attacks.verify import Verification, fooled, verified

__all__ = [
    "ATTACKS",
    "LOSSES",
    "NORMS",
    "Attack",
    "Verdict",
    "Verification",
    "apgd",
    "apgd_targeted",
    "carlini_wagner",
    "corruptions",
    "ddn",
    "deepfool",
    "fab",
    "fgsm",
    "fmn",
    "fooled",
    "gradient_ascent",
    "hop_skip_jump",
    "lbfgs",
    "pgd",
    "sigma_zero",
    "spatial",
    "square",
    "standard",
    "universal",
    "verified",
]
