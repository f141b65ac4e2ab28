"""Going on with a training: what its folder keeps, and whether it is the same run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from sfumato.core import checkpoint
from sfumato.core.errors import InputError

SHOWN = 4  # differences named
LONGEST = 60  # letters of each value
STATE = Path("train_state") / "state.safetensors"


class Resumable(Protocol):
    """A run in memory that can be brought to a stored state; KeyError, RuntimeError or TypeError where it does not fit."""

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None: ...


def restore(run: Resumable, out: Path, identity: dict[str, Any]) -> None:
    """Bring the run to where the folder stands; nothing to do for a new folder."""
    file = out / STATE
    if not file.exists():
        if (out / checkpoint.MODEL).exists():
            raise InputError(f"{out} holds a model but no train_state to go on from: give another --out")
        return
    tensors, stored = checkpoint.read(file)
    differences = _differences(stored.get("identity", {}), identity)
    if differences:
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise InputError(f"{out} holds another run ({'; '.join(differences[:SHOWN])}{more}): give another --out, or the "
                         "same command as before")  # fmt: skip
    try:
        run.restore(tensors, stored["numbers"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"{file} does not fit this version of sfumato ({error}): give another --out") from None


def _differences(stored: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Sentences such as ``batch was 128, now 64``."""
    found = []
    for key in {**stored, **asked}:
        was, now = stored.get(key), asked.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += _differences(was, now, f"{prefix}{key}." if key != "config" else "")
        elif was != now:
            found.append(f"{prefix}{key} was {_short(was)}, now {_short(now)}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def model_is_stale(out: Path) -> bool:
    """Whether the state was written and the model after it was not."""
    state, model = out / STATE, out / checkpoint.MODEL
    return state.exists() and (not model.exists() or model.stat().st_mtime_ns < state.stat().st_mtime_ns)
