"""How long to train: minutes, images, steps or epochs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from sfumato.core.errors import InputError


@dataclass(frozen=True)
class Budget:
    """At least one of the four is set; of several, training ends with what comes first.

    Raises:
        InputError: a number that leaves no time to train.
    """

    minutes: float | None = None
    images: int | None = None
    steps: int | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.limits.items():
            if not 0 < value < float("inf"):
                raise InputError(f"--{name} {value:g} leaves no time to train: give a number over 0")

    @property
    def limits(self) -> dict[str, Any]:
        """What is set, by name."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value is not None}

    def fraction(self, *, seconds: float = 0.0, images: int = 0, steps: int = 0, epochs: float = 0.0) -> float:
        """How much of it is used up; 1 or more means done."""
        used = {"minutes": seconds, "images": images, "steps": steps, "epochs": epochs}
        return max(used[name] / (60 * limit if name == "minutes" else limit) for name, limit in self.limits.items())

    def __str__(self) -> str:
        """``15 minutes``, ``1,000 steps``, ``3 minutes or 60 epochs``."""
        texts: list[str] = []
        for name, limit in self.limits.items():
            number = f"{limit:,}" if name in ("images", "steps") else f"{limit:g}"
            texts.append(f"{number} {name if limit != 1 else name.removesuffix('s')}")
        return " or ".join(texts)
