"""Long work in parts on disk: each is written whole as soon as it is done, so that work that was stopped goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sfumato.core import checkpoint
from sfumato.core.errors import InputError

FOLDER = "parts"


class StepResult(NamedTuple):
    """What one step of an audit or a certification found."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]  # JSON values


class Store:
    """The parts by name: in the folder ``parts`` of the results, or in memory alone.

    Args:
        folder: of the results; None keeps nothing.
        identity: all that the parts depend on. It is in the names of their files: those of other work are never read.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self.folder = None if folder is None else folder / FOLDER
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.found = 0
        """How many parts were there already."""

    def get(self, name: str, compute: Callable[[], StepResult]) -> StepResult:
        """The part called ``name`` as it was written, or else as it is computed and written now."""
        if self.folder is None:
            return compute()
        file = self._file(name)
        with suppress(InputError):  # a damaged part is computed anew
            if file.exists():
                tensors, numbers = checkpoint.read(file)
                self.found += 1
                return StepResult({key: tensor.clone() for key, tensor in tensors.items()}, numbers)
        part = compute()
        # Through the file's own text, so that a part is the same whether it was read or computed.
        part = StepResult(part.tensors, json.loads(json.dumps(part.numbers)))
        checkpoint.write_tensors(file, part.tensors, part.numbers)
        return part

    def sweep(self) -> None:
        """Remove what other work left in this folder."""
        if self.folder is None:
            return
        for file in self.folder.glob("*-????????????????.safetensors"):
            if file != self._file(file.name.rsplit("-", 1)[0]):
                with suppress(OSError):
                    file.unlink()

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}-{self.key}.safetensors"
