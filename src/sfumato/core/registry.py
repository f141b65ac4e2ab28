"""One dictionary for each kind of part (samplers, networks, data sets, ...), filled by a decorator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sfumato.core.errors import InputError, nearest

T = TypeVar("T")


class Registry(dict[str, T]):
    """Parts of one kind by name; ``registry.add("name")`` is the decorator that enters one.

    >>> COLOURS: Registry[Callable[[], str]] = Registry("colour")
    >>> @COLOURS.add("red")
    ... def red() -> str:
    ...     return "#f00"
    >>> COLOURS.find("red")()
    '#f00'
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def add(self, name: str) -> Callable[[T], T]:
        """Enter the decorated object under ``name``; a name taken twice is a programming error."""

        def enter(part: T) -> T:
            if name in self:
                raise KeyError(f"{self.kind} {name!r} is registered twice")
            self[name] = part
            return part

        return enter

    def find(self, name: str) -> T:
        """The part called ``name``; an unknown name raises InputError with the nearest known one."""
        if name not in self:
            raise InputError(f"unknown {self.kind} {name!r}: {nearest(name, self)}")
        return self[name]
