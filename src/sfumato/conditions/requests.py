"""From what a user asks for, labels or prompts, to the condition of each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from sfumato.conditions.condition import Condition, Kinds
from sfumato.conditions.text import TextEncoder
from sfumato.core.errors import InputError, nearest

Labels = str | int | Sequence[str | int] | None
Prompts = str | Sequence[str] | None


class Conditioned(Protocol):
    """A model that takes conditions: what it knows of them."""

    @property
    def kinds(self) -> Kinds: ...
    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def encoder(self) -> TextEncoder: ...  # not looked at unless there is a prompt to read


def requested(model: Conditioned, n: int, label: Labels, prompt: Prompts, first: int = 0) -> Condition:
    """The condition of n images, from number ``first`` on: labels or prompts; without either, every class in turn.

    Raises:
        InputError: a label or prompt that the model does not know or that does not fit, or both at once.
    """
    if prompt is None:
        if label is not None:
            return Condition(label=label_numbers(model, n, label))
        return Condition(label=label_numbers(model, first + n)[first:]) if model.classes else Condition()
    if label is not None:
        raise InputError("a label and a prompt were given: give one of them")
    if not model.kinds.tokens:
        other = "labels: give one of them with --label" if model.classes else "nothing but images: leave it out"
        raise InputError(f"a prompt was given, but this model was trained with {other}")
    texts = check_prompts(prompt, n)
    distinct = list(dict.fromkeys(texts))
    latents = model.encoder(distinct)
    rows = torch.tensor([distinct.index(text) for text in texts])
    return Condition(vector=latents.vector[rows], tokens=latents.tokens[rows], mask=latents.mask[rows])


def check_prompts(prompt: str | Sequence[str], n: int) -> list[str]:
    """A text for each of n images; InputError for another number of them, or an empty one."""
    texts = [prompt] * n if isinstance(prompt, str) else list(prompt)
    if len(texts) != n:
        raise InputError(f"{len(texts)} prompts were given for {n} images: give one, or one for each")
    if not all(text.strip() for text in texts):
        raise InputError("a prompt is empty: say what to draw, or leave the prompt out for images of anything")
    return texts


def label_numbers(model: Conditioned, n: int, label: Labels = None) -> Tensor:
    """The (n,) int64 label numbers of a request; InputError for an unknown one, with the nearest name."""
    if label is None:
        return torch.arange(n) % len(model.classes) if model.classes else torch.zeros(n, dtype=torch.int64)
    if isinstance(label, Tensor):
        label = label.tolist()
    wanted = [label] * n if isinstance(label, str | int) else list(label)
    if len(wanted) != n:
        raise InputError(f"{len(wanted)} labels were given for {n} images: give one, or one for each")
    return torch.tensor([_label_number(model, one) for one in wanted])


def _label_number(model: Conditioned, label: str | int) -> int:
    classes = list(model.classes)
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if str(label).isdecimal() and int(label) < len(classes):
        return int(label)
    if not classes:
        instead = "give a --prompt" if model.kinds.tokens else "leave it out"
        raise InputError(f"label {label!r} was asked for, but this model was trained without labels: {instead}")
    raise InputError(f"unknown label {label!r}: {nearest(str(label), classes)}")
