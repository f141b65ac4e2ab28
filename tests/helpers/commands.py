"""How a command of the command line ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Result(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    def done(self) -> Result:
        """Itself: exit status 0."""
        assert self.status == 0, self
        return self

    @property
    def sentence(self) -> str:
        """The error: exit status 2, nothing on standard output, and one line without a traceback."""
        assert self.status == 2, self
        assert self.out == ""
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        assert all(line.startswith("sfumato: ") for line in lines), self.err
        assert len(lines) == 1, self.err
        return lines[0]


Command = Callable[..., Result]
