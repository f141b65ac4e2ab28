"""A trained classifier on disk: ``model.safetensors``, which holds everything, and ``config.json`` for people to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sfumato.classifiers.classifier import Classifier
from sfumato.classifiers.networks import NETWORKS
from sfumato.core import checkpoint
from sfumato.core.devices import find_device
from sfumato.core.errors import InputError

FORMAT = 1
_WANTED = {"network": str, "size": list, "channels": int, "mean": list, "std": list, "labels": list}


def save_classifier(folder: str | Path, classifier: Classifier, notes: Mapping[str, Any] | None = None) -> None:
    """Write a classifier whose model is one of ``NETWORKS`` to ``folder``, each file whole or not at all.

    Args:
        folder: made where it is missing.
        classifier: with mean, std, labels, size and channels.
        notes: what else to keep with it (test accuracy, data, how it was trained), JSON values by name.

    Raises:
        InputError: another model, a classifier without one of these, or a place that cannot be written to.
    """
    module = classifier.module
    name = next((name for name, network in NETWORKS.items() if type(module) is network), None)
    if module is None or name is None:
        problem = f"a classifier around {type(classifier.model).__name__} cannot be saved, only sfumato's networks"
        advice = "save the model itself, and give it as py:package.module:factory"
        raise InputError(f"{problem} ({', '.join(NETWORKS)}): {advice}")
    if classifier.mean is None or classifier.std is None or classifier.size is None or classifier.channels is None:
        problem = "a classifier is saved with its mean, std, size and channels"
        raise InputError(f"{problem}: give all four to Classifier(...)")
    description = {**(notes or {}), "format": FORMAT, "kind": "classifier", "network": name}
    description |= {"size": classifier.size, "channels": classifier.channels, "mean": classifier.mean.tolist()}
    description |= {"std": classifier.std.tolist(), "labels": classifier.labels}
    checkpoint.write(Path(folder), module.state_dict(), json.loads(json.dumps(description)))


def load_classifier(path: str | Path, device: str | torch.device = "auto") -> Classifier:
    """The classifier of a folder (or ``model.safetensors``, or ``hf:owner/name``) that ``save_classifier`` wrote.

    Raises:
        InputError: nothing there, a damaged or foreign file, a pickle, or a model of another kind.
    """
    chosen = find_device(device)
    file = checkpoint.find(path)
    tensors, description = checkpoint.read(file)
    check_description(file, description)
    network = NETWORKS.find(description["network"])
    height, width = description["size"]
    try:
        with torch.device("meta"):  # no numbers are drawn, and no more memory is taken than the file's own
            module = network(description["channels"], (height, width), len(description["labels"]))
        # Copies, for what was read is the file itself in memory, which somebody may write over.
        module.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    except RuntimeError as error:
        problem = f"{file} does not fit its network {description['network']!r} ({str(error).splitlines()[-1].strip()})"
        raise InputError(f"{problem}: train it again") from None
    # As trained: with gradients, and channels last, as convolutions like it.
    module = module.requires_grad_(True).to(memory_format=torch.channels_last).to(chosen)  # type: ignore[call-overload]
    known = {key: description[key] for key in ("mean", "std", "labels", "channels")}
    return Classifier(module.eval(), size=(height, width), device=chosen, **known)


def read_description(path: str | Path) -> dict[str, Any]:
    """What is kept with a saved classifier: the settings, and the notes (test accuracy, data, training)."""
    file = checkpoint.find(path)
    description = checkpoint.read(file)[1]
    check_description(file, description)
    return description


def check_description(file: Path, description: Mapping[str, Any]) -> None:
    """InputError unless this describes a classifier that this version can build."""
    if description.get("kind") != "classifier":
        raise InputError(f"{file} is not a classifier: give a folder that 'sfumato classifier train --out' wrote")
    if description.get("format") != FORMAT:
        problem = f"{file} has format {description.get('format')!r}, this version reads {FORMAT}"
        raise InputError(f"{problem}: use the version of sfumato that wrote it")
    wrong = [key for key, kind in _WANTED.items() if not isinstance(description.get(key), kind)]
    size, labels = description.get("size"), description.get("labels")
    if isinstance(size, list) and not (len(size) == 2 and all(type(n) is int and 0 < n <= 65_536 for n in size)):
        wrong.append("size")
    if isinstance(labels, list) and not (len(labels) >= 2 and all(isinstance(name, str) for name in labels)):
        wrong.append("labels")
    if wrong:
        raise InputError(f"{file} describes no classifier ({', '.join(wrong)} missing or wrong): train it again")
