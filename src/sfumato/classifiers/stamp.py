"""What the numbers of an audit or a certificate depend on: to be told in reports, and to tell one from another."""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor

from sfumato.classifiers.classifier import Classifier
from sfumato.core import checkpoint
from sfumato.core.version import __version__

_LOOKED_AT = 4  # images


def classifier_hash(classifier: Classifier, x: Tensor) -> str:
    """16 hex digits of the SHA-256 of weights, preprocessing, labels and, for a deterministic model, a few answers.

    The answers tell models apart whose weights agree and whose code does not. Costs a few passes.

    Args:
        classifier: any.
        x: (B, C, H, W) pixels, of which the first four are looked at.
    """
    state = {} if classifier.module is None else classifier.module.state_dict()
    tensors = {**state, "mean": classifier.mean, "std": classifier.std}
    first, second = classifier.logits(x[:_LOOKED_AT]), classifier.logits(x[:_LOOKED_AT])
    if torch.equal(first, second):
        tensors["answers"] = first
    told = [list(classifier.labels), classifier.size, classifier.channels]
    return checkpoint.checksum({name: each for name, each in tensors.items() if isinstance(each, Tensor)}, told)[:16]


def stamp(classifier: Classifier) -> dict[str, Any]:
    """Versions and device."""
    device = classifier.device
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "sfumato": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device.type} ({chip})",
        "number type": str(classifier.dtype or torch.float32).removeprefix("torch."),
    }
