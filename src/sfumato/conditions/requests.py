"""From what a user asks for, labels or prompts, to the condition of each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sfumato.conditions.condition import Condition, Kinds
from sfumato.conditions.text import TextEncoder
from sfumato.core.errors import InputError, nearest

Labels = str | int | Sequence[str | int] | None
Prompts = str | Sequence[str] | None


def requested(
    kinds: Kinds, classes: Sequence[str], encoder: Callable[[], TextEncoder], n: int, label: Labels, prompt: Prompts,
    first: int = 0,
) -> Condition:  # fmt: skip
    """What n images are told, from number ``first`` on: labels or prompts; without either, every class in turn.

    Args:
        kinds, classes: of the model that is asked.
        encoder: gives its language model, where there is a prompt to read.

    Raises:
        InputError: a label or prompt that the model does not know or that does not fit, or both at once.
    """
    if prompt is None:
        if label is not None:
            return Condition(label=label_numbers(kinds, classes, n, label))
        return Condition(label=label_numbers(kinds, classes, first + n)[first:]) if classes else Condition()
    if label is not None:
        raise InputError("a label and a prompt were given: give one of them")
    if not kinds.tokens:
        other = "labels: give one of them with --label" if classes else "nothing but images: leave it out"
        raise InputError(f"a prompt was given, but this model was trained with {other}")
    texts = check_prompts(prompt, n)
    distinct = list(dict.fromkeys(texts))
    latents = encoder()(distinct)
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


def label_numbers(kinds: Kinds, classes: Sequence[str], n: int, label: Labels = None) -> Tensor:
    """The (n,) int64 label numbers of a request; InputError for an unknown one, with the nearest name."""
    if label is None:
        return torch.arange(n) % len(classes) if classes else torch.zeros(n, dtype=torch.int64)
    if isinstance(label, Tensor):
        label = label.tolist()
    wanted = [label] * n if isinstance(label, str | int) else list(label)
    if len(wanted) != n:
        raise InputError(f"{len(wanted)} labels were given for {n} images: give one, or one for each")
    return torch.tensor([_label_number(kinds, classes, one) for one in wanted])


def _label_number(kinds: Kinds, classes: Sequence[str], label: str | int) -> int:
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if str(label).isdecimal() and int(label) < len(classes):
        return int(label)
    if not classes:
        instead = "give a --prompt" if kinds.tokens else "leave it out"
        raise InputError(f"label {label!r} was asked for, but this model was trained without labels: {instead}")
    raise InputError(f"unknown label {label!r}: {nearest(str(label), classes)}")
