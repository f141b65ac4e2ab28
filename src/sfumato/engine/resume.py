"""Resuming a training: what its run folder keeps, and whether it is the same run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from sfumato.core import checkpoint
from sfumato.core.errors import InputError
from sfumato.engine.trainer import Trainer

SHOWN = 4  # differences named
Document = dict[str, Any]
LONGEST = 60  # letters of each value
STATE = Path("train_state") / "state.safetensors"


def check_run(out: Path, identity: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and numbers that a run folder keeps; None for a new folder.

    Raises:
        InputError: the folder cannot be written to, holds another run or a model without a state, or its state is damaged.
    """
    check_writable(out)
    file = out / STATE
    if not file.exists():
        if (out / checkpoint.MODEL).exists():
            raise InputError(f"{out} holds a model but no train_state to resume from: give another --out")
        return None
    tensors, stored = checkpoint.read(file)
    differences = _differences(stored.get("identity", {}), json.loads(json.dumps(identity)))
    if differences:
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise InputError(
            f"{out} holds another run ({'; '.join(differences[:SHOWN])}{more}): give another --out, or the same command as before"
        )
    return tensors, stored["numbers"]


def restore(trainer: Trainer, out: Path, identity: dict[str, Any]) -> None:
    """Bring the training to where the run folder stands; nothing to do for a new folder. Errors as :func:`check_run`."""
    if (found := check_run(out, identity)) is None:
        return
    try:
        trainer.restore(*found)
    except (KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"{out / STATE} does not fit this version of sfumato ({error}): give another --out") from None


def check_writable(out: Path) -> None:
    """InputError for a place that cannot be written to, before any work is done; nothing is left behind."""
    there = out
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise InputError(f"{out} cannot be made, for {there} is a file: give another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{out} cannot be written, permission to {there} is denied: give another --out")


def _differences(stored: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Sentences such as ``batch was 128, now 64``."""
    found: list[str] = []
    for key in {**stored, **asked}:
        was, now = stored.get(key), asked.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += _differences(
                cast(Document, was), cast(Document, now), f"{prefix}{key}." if key != "config" else ""
            )
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
