"""What a docstring says of each name in one of its sections: help texts are taken from there, so that they are said once."""

from __future__ import annotations

import inspect
import re


def described(documented: object, section: str = "Args") -> dict[str, str]:
    """Name to description, in one line each, from a section such as ``Args:`` of a docstring.

    >>> def scaled(x, factor):
    ...     '''Scale.
    ...
    ...     Args:
    ...         x: a number,
    ...             of any kind.
    ...         factor: another.
    ...     '''
    >>> described(scaled)
    {'x': 'a number, of any kind.', 'factor': 'another.'}
    """
    _, _, rest = (inspect.getdoc(documented) or "").partition(f"\n{section}:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines():
        if line and not line.startswith(" "):  # the next section
            break
        if start := re.match(r" {4}(\w+(?:, \w+)*): (.*)", line):
            names = start[1].split(", ")
            found |= dict.fromkeys(names, start[2].strip())
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
