"""What a model says of the images it wants: mean and standard deviation, size, channels, class names."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.errors import InputError


@dataclass(frozen=True)
class Declared:
    """What is known of a model; None or () for what is not."""

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    size: tuple[int, int] | None = None  # (H, W), where no other will do
    channels: int | None = None
    labels: tuple[str, ...] = ()
    classes: int | None = None


def declared(module: nn.Module | None, normalised: bool) -> Declared:
    """What timm (``pretrained_cfg``) and transformers (``config``) models say of themselves.

    ``normalised``: mean or std was given, so that a model of transformers, which does not know its own, needs no
    warning.
    """
    timm = getattr(module, "pretrained_cfg", None)
    if isinstance(timm, Mapping):
        return from_timm(timm, getattr(module, "num_classes", None))
    config = getattr(module, "config", None)
    if module is not None and isinstance(getattr(config, "id2label", None), Mapping):
        if not normalised:
            warnings.warn(
                f"{type(module).__name__} does not say how its pixels are normalised, so that they are left in [0, 1]: "
                "give mean and std, or use find_classifier('hf:...'), which reads them",
                stacklevel=3,
            )
        return from_transformers(config)
    return Declared()


def from_timm(settings: Mapping[str, Any], classes: int | None) -> Declared:
    """A timm model's ``pretrained_cfg``; its size counts where the network is bound to it."""
    shape = tuple(settings.get("input_size") or ())  # (C, H, W)
    names = settings.get("label_names")
    usable = isinstance(names, Sequence) and len(names) == classes
    return Declared(
        mean=settings.get("mean"),
        std=settings.get("std"),
        size=shape[1:] if settings.get("fixed_input_size") and len(shape) == 3 else None,
        channels=shape[0] if shape else None,
        labels=distinct(names) if usable and names is not None else (),
        classes=classes or None,
    )


def from_transformers(config: Any) -> Declared:
    """A transformers model's ``config``: size, channels and class names (two classes of one name are told apart)."""
    names = [str(config.id2label[i]) for i in sorted(config.id2label)]
    labels = distinct(names) if names != [f"LABEL_{i}" for i in range(len(names))] else ()  # what stands for no names
    size = getattr(config, "image_size", None)
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) else None
    return Declared(
        size=pair if pair is not None and len(pair) == 2 else None,
        channels=getattr(config, "num_channels", None),
        labels=labels,
        classes=len(names) or None,
    )


def distinct(names: Sequence[Any]) -> tuple[str, ...]:
    """Class names, those that occur twice (ImageNet has two kinds of "crane") with their number."""
    counts = Counter(str(name) for name in names)
    return tuple(f"{name} ({i})" if counts[str(name)] > 1 else str(name) for i, name in enumerate(names))


def statistics(mean: Any, std: Any) -> tuple[Tensor | None, Tensor | None]:
    """Mean and std as (C,) or (1,) float64 tensors, both or neither; InputError for what cannot be in [0, 1] units."""
    if mean is None and std is None:
        return None, None
    mean, std = (_vector(name, value) for name, value in (("mean", 0.0 if mean is None else mean), ("std", std)))
    if len(mean) != len(std) and 1 not in (len(mean), len(std)):
        raise InputError(f"mean has {len(mean)} numbers and std {len(std)}: give one a channel in both")
    advice = "give it for pixels from 0 to 1 (divide by 255 what is meant for 8-bit pixels)"
    if bool((mean.abs() > 1).any()):
        raise InputError(f"mean {_plain(mean)} is not within [0, 1]: {advice}")
    if bool((std <= 0).any()) or bool((std > 1).any()):
        raise InputError(f"std {_plain(std)} is not over 0 and up to 1: {advice}")
    return mean, std


def check_channels(channels: int | None, mean: Tensor | None, std: Tensor | None) -> int | None:
    """How many channels the model takes, from what is given and from the length of mean and std."""
    longest = max(len(mean) if mean is not None else 1, len(std) if std is not None else 1)
    if longest == 1:
        return channels
    if channels not in (None, longest):
        raise InputError(f"mean and std are for {longest} channels, but channels is {channels}: give them alike")
    return longest


def _vector(name: str, value: Any) -> Tensor:
    try:
        vector = torch.as_tensor(1.0 if value is None else value, dtype=torch.float64).detach().cpu().flatten()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} {value!r} is no number and no list of numbers: give one a channel") from None
    if not len(vector) or not bool(torch.isfinite(vector).all()):
        raise InputError(f"{name} {value!r} must be finite numbers: give one a channel")
    return vector


def _plain(vector: Tensor) -> str:
    return ", ".join(f"{number:g}" for number in vector.tolist())
