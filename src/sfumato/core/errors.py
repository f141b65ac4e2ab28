"""The one exception for bad input: the command line turns it into one sentence and exit status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What the user gave cannot work.

    The message is one sentence that names the file or option, says what is wrong and what to do.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence about an unknown name: the nearest known one, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
    for k in known:
        if close and k.lower() == close[0]:
            return f"did you mean {k!r}? (known: {', '.join(known)})"
    return f"choose one of: {', '.join(known)}"
