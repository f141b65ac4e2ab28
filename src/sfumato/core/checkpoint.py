"""Model files: one safetensors file that holds the tensors, their description and a checksum. Never a pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sfumato.core.errors import InputError
from sfumato.core.files import atomic, atomic_write, make_folder

MODEL = "model.safetensors"
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")


def find(path: str | Path) -> Path:
    """The model file of a run folder, of a saved folder, of a path, or of ``hf:owner/name``."""
    if str(path).startswith("hf:"):
        return _from_hub(str(path)[3:])
    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise InputError(f"{path} is a pickle, which could run code if loaded: give a model.safetensors or its folder")
    file = path / MODEL if path.is_dir() else path
    if not file.exists():
        there = f"there is no {MODEL} in {path}" if path.is_dir() else f"{path} does not exist"
        raise InputError(f"{there}: give a folder that 'sfumato train --out' wrote")
    return file


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(name, MODEL))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"hf:{name} cannot be fetched ({reason}): check the name and the network") from None


def write(folder: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write ``model.safetensors`` and, for people to read, ``config.json``."""
    write_tensors(folder / MODEL, tensors, description)
    atomic_write(folder / "config.json", (json.dumps(description, indent=2) + "\n").encode())


def write_tensors(file: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """One safetensors file, in one piece, with its description and checksum in the header."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"sfumato": json.dumps(description), "sha256": checksum(plain, description)}
    make_folder(file.parent)
    with atomic(file) as beside:
        save_file(plain, beside, header)


def save_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Like safetensors' function of this name, whose files however only their owner may read."""
    path.write_bytes(save(tensors, metadata))


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, description) of a file that ``write_tensors`` wrote; InputError for anything else or a damaged one."""
    try:
        with cast(Any, safe_open)(file, framework="pt") as opened:  # the library has no types
            header: dict[str, str] = opened.metadata() or {}
            tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged, or no safetensors file ({error}): train or copy it again") from None
    if "sfumato" not in header:
        raise InputError(f"{file} is a safetensors file, but not one of sfumato's: give a model that sfumato saved")
    try:
        description: dict[str, Any] | None = json.loads(header["sfumato"])
    except json.JSONDecodeError:
        description = None
    if not isinstance(description, dict) or header.get("sha256") != checksum(tensors, description):
        raise InputError(f"{file} was changed or damaged after it was written (checksum): train or copy it again")
    return tensors, description


def digest(network: nn.Module | None) -> str:
    """16 hex digits that tell the weights of one network from those of another."""
    return checksum({} if network is None else network.state_dict())[:16]


def checksum(tensors: Mapping[str, Tensor], description: Any = None) -> str:
    """The SHA-256 of names, number types, shapes and bytes, and of a description (JSON values) that goes with them."""
    found = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        found.update(plain.view(torch.uint8).numpy().data if plain.numel() else b"")
    return found.hexdigest()
