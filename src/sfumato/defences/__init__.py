"""Defences: a generator's denoiser in front of a classifier, and what can be proved of the two.

>>> import torch
>>> from sfumato.classifiers import Classifier
>>> classifier = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)))
>>> (certificate,) = certify(classifier, torch.rand(1, 1, 8, 8), sigma=0.25, radii=[0.1], n=2000)
>>> certificate.n <= 2000 and 0 <= certificate.p_lower <= 1
True
"""

from __future__ import annotations

from sfumato.defences.compatibility import check_compatible
from sfumato.defences.diffusion_classifier import Decision, DiffusionClassifier, classify, diffusion_classifier
from sfumato.defences.hardening.harden import HardeningRequest, harden, hardening_steps
from sfumato.defences.hardening.landscape import LossLandscape, loss_landscape
from sfumato.defences.purification.attacks import Effort
from sfumato.defences.purification.protocol import Purification, purification_protocol
from sfumato.defences.purification.purifier import Purifier, purified, purify
from sfumato.defences.smoothing.certified_accuracy import (
    CertificationRequest,
    CertifiedData,
    certified_accuracy,
    certify_data,
    guaranteed_accuracy,
)
from sfumato.defences.smoothing.certify import ABSTAIN, Certificate, SmoothedClassifier, certify
from sfumato.defences.smoothing.radii import l1_radius, l2_radius, linf_radius
from sfumato.defences.smoothing.settings import SmoothingSettings
from sfumato.defences.smoothing.smooth_adv import Attacked, smooth_adv

__all__ = [
    "ABSTAIN",
    "Attacked",
    "Certificate",
    "CertificationRequest",
    "CertifiedData",
    "Decision",
    "DiffusionClassifier",
    "Effort",
    "HardeningRequest",
    "LossLandscape",
    "Purification",
    "Purifier",
    "SmoothedClassifier",
    "SmoothingSettings",
    "certified_accuracy",
    "certify",
    "certify_data",
    "check_compatible",
    "classify",
    "diffusion_classifier",
    "guaranteed_accuracy",
    "harden",
    "hardening_steps",
    "l1_radius",
    "l2_radius",
    "linf_radius",
    "loss_landscape",
    "purification_protocol",
    "purified",
    "purify",
    "smooth_adv",
]
