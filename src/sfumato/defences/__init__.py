"""Defences: a generator's denoiser in front of a classifier, and what can be proved of the two.

>>> import torch
>>> from sfumato.classifiers import Classifier
>>> classifier = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)))
>>> (certificate,) = certify(classifier, torch.rand(1, 1, 8, 8), sigma=0.25, radii=[0.1], n=2000)
>>> certificate.n <= 2000 and 0 <= certificate.p_lower <= 1
True
"""

from __future__ import annotations

from sfumato.defences.diffusion_classifier import Decision, DiffusionClassifier, classify, diffusion_classifier
from sfumato.defences.fit import check_fit
from sfumato.defences.hardening.harden import harden, hardening_steps
from sfumato.defences.hardening.smoothness import Smoothness, smoothness
from sfumato.defences.purification.attacks import Effort
from sfumato.defences.purification.protocol import Purification, purification_protocol
from sfumato.defences.purification.purifier import Purifier, purified, purify
from sfumato.defences.smoothing.certificates import (
    ABSTAIN,
    Certificate,
    certified,
    guaranteed,
    l1_radius,
    l2_radius,
    linf_radius,
)
from sfumato.defences.smoothing.certification import Certification, certify_data
from sfumato.defences.smoothing.certify import certify
from sfumato.defences.smoothing.smoothed_attack import Attacked, attack_smoothed

__all__ = [
    "ABSTAIN", "Attacked", "Certificate", "Certification", "Decision", "DiffusionClassifier", "Effort",
    "Purification", "Purifier", "Smoothness", "attack_smoothed",
    "certified", "certify", "certify_data", "check_fit", "classify", "diffusion_classifier", "guaranteed",
    "harden", "hardening_steps", "l1_radius", "l2_radius", "linf_radius",
    "purification_protocol", "purified", "purify", "smoothness",
]  # fmt: skip
