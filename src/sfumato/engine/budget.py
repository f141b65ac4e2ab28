"""How long to train: minutes, images or steps."""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.core.errors import InputError

DEFAULT_MINUTES = 15.0


@dataclass(frozen=True)
class Budget:
    """Exactly one of the three is set."""

    minutes: float | None = None
    images: int | None = None
    steps: int | None = None

    @staticmethod
    def of(minutes: float | None, images: int | None, steps: int | None) -> Budget:
        """The budget that was asked for; 15 minutes when nothing was."""
        given = {"minutes": minutes, "images": images, "steps": steps}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise InputError(f"the budget was given as {' and '.join(given)}: give one of them")
        for name, value in given.items():
            if not 0 < value < float("inf"):
                raise InputError(f"--{name} {value:g} leaves no time to train: give a number over 0")
        return Budget(minutes, images, steps) if given else Budget(minutes=DEFAULT_MINUTES)

    def fraction(self, seconds: float, images: int, steps: int) -> float:
        """How much of it is used up; 1 or more means done."""
        if self.minutes is not None:
            return seconds / (60 * self.minutes)
        if self.images is not None:
            return images / self.images
        assert self.steps is not None
        return steps / self.steps

    def __str__(self) -> str:
        if self.minutes is not None:
            return f"{self.minutes:g} minute{'s' if self.minutes != 1 else ''}"
        return f"{self.images:,} images" if self.images is not None else f"{self.steps:,} steps"
