"""What an audit's numbers depend on, for the report and to tell one audit from another."""

from __future__ import annotations

import hashlib
import platform
from typing import Any

import torch
from torch import Tensor

from sfumato.classifiers import Classifier

_LOOKED_AT = 4  # images


def classifier_hash(classifier: Classifier, x: Tensor) -> str:
    """16 hex digits of the SHA-256 of weights, preprocessing, labels and, for a deterministic model, a few answers.

    The answers tell models apart whose weights agree and whose code does not. Costs a few passes.

    Args:
        classifier: any.
        x: (B, C, H, W) pixels, of which the first four are looked at.
    """
    digest = hashlib.sha256(repr((classifier.labels, classifier.size, classifier.channels)).encode())
    state = {} if classifier.module is None else classifier.module.state_dict()
    statistics = {"mean": classifier.mean, "std": classifier.std}
    for name, tensor in sorted({**state, **statistics}.items(), key=lambda item: item[0]):
        if isinstance(tensor, Tensor):
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            plain = tensor.detach().cpu().contiguous().flatten()
            digest.update(plain.view(torch.uint8).numpy().data if plain.numel() else b"")
    first, second = classifier.logits(x[:_LOOKED_AT]), classifier.logits(x[:_LOOKED_AT])
    if torch.equal(first, second):
        digest.update(first.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def stamp(classifier: Classifier) -> dict[str, Any]:
    """Versions and device."""
    from sfumato import __version__

    device = classifier.device
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "sfumato": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device.type} ({chip})",
        "number type": str(classifier.dtype or torch.float32).removeprefix("torch."),
    }
