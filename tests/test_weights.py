"""Model files: whole or not at all, checked when read, never a pickle."""

from __future__ import annotations

import json
import os
import pickle
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers.generators import random_generator
from sfumato.core import checkpoint
from sfumato.core.errors import InputError
from sfumato.generator import Generator

TENSORS = {
    "matrix": torch.arange(24, dtype=torch.float32).reshape(4, 6),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "turned": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "empty": torch.zeros(0, 3),
}
DESCRIPTION = {"format": 1, "classes": ["a", "ü"], "number": 0.1, "nested": {"list": [1, 2]}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    checkpoint.write(tmp_path, TENSORS, DESCRIPTION)
    return tmp_path / checkpoint.MODEL


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(file: Path, header: dict[str, Any], body: bytes) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def test_what_is_written_is_read(file: Path):
    tensors, description = checkpoint.read(file)
    assert description == DESCRIPTION
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype
    assert json.loads((file.parent / "config.json").read_text()) == DESCRIPTION


def test_a_rewritten_header_still_reads(file: Path):
    """So that the refusals below are of what was changed, not of the rewriting."""
    with_header(file, *header_of(file))
    assert checkpoint.read(file)[1] == DESCRIPTION


@pytest.mark.parametrize("keep", [0, 5, 8, 100, 0.5, -1])
def test_truncated_files_are_refused(file: Path, keep: float):
    data = file.read_bytes()
    length = round(keep * len(data)) if 0 < keep < 1 else int(keep) % len(data)
    file.write_bytes(data[:length])
    with pytest.raises(InputError, match=r"model\.safetensors.*(damaged|no safetensors)"):
        checkpoint.read(file)


@pytest.mark.parametrize("name", list(TENSORS))
def test_one_flipped_bit_is_found(file: Path, name: str):
    header, body = header_of(file)
    first, last = header[name]["data_offsets"]
    for where in range(first, last, 7):
        changed = bytearray(body)
        changed[where] ^= 1
        with_header(file, header, bytes(changed))
        with pytest.raises(InputError, match="checksum"):
            checkpoint.read(file)


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another description": lambda header: header["__metadata__"].update(
        sfumato=json.dumps({**DESCRIPTION, "number": 1})
    ),
    "a broken description": lambda header: header["__metadata__"].update(sfumato="{"),
    "a list for a description": lambda header: header["__metadata__"].update(sfumato="[1]"),
    "no checksum": lambda header: header["__metadata__"].pop("sha256"),
    "another shape": lambda header: header["matrix"].update(shape=[6, 4]),
    "another type": lambda header: header["matrix"].update(dtype="I32"),
    "another name": lambda header: header.update(matrix2=header.pop("matrix")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_headers_are_found(file: Path, change: str):
    header, body = header_of(file)
    CHANGES[change](header)
    with_header(file, header, body)
    with pytest.raises(InputError, match="checksum"):
        checkpoint.read(file)


def test_foreign_safetensors_are_refused(tmp_path: Path):
    save_file({"w": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="not one of sfumato's"):
        Generator.from_pretrained(tmp_path)


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "a.PKL", "model.ckpt", "pytorch_model.bin", "model.pickle"])
def test_pickles_are_refused_by_name(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(InputError, match="is a pickle"):
        Generator.from_pretrained(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_under_another_name_is_refused_and_not_run(tmp_path: Path):
    for write in (torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))):
        write(Bomb(tmp_path / "ran"), tmp_path / "model.safetensors")
        with pytest.raises(InputError, match="no safetensors file"):
            Generator.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_missing_files(tmp_path: Path):
    with pytest.raises(InputError, match=r"there is no model\.safetensors in"):
        Generator.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="nowhere does not exist"):
        Generator.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        Generator.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "format 99"),
        ({"config": {"colour": 3}}, "colour"),
        ({"config": {"network": "transformer"}}, "unknown network"),
        ({"size": [9, 9]}, "9x9"),
        ({"classes": ["one"]}, "no sfumato model, or a damaged one"),
        ({"smooth_rms": None}, "no sfumato model"),
        ({"config": None}, "no sfumato model"),
        ({"config": [1]}, "sfumato"),
        ({"size": 8}, "no sfumato model"),
    ],
)
def test_descriptions_that_do_not_fit(tmp_path: Path, change: dict[str, Any], words: str):
    """With a right checksum, yet not of this version, or not of these tensors: the sentence names the file."""
    one = random_generator()
    checkpoint.write(tmp_path, one.denoiser.state_dict(), {**one.description(), **change})
    with pytest.raises(InputError, match=words) as caught:
        Generator.from_pretrained(tmp_path)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_tensors_that_do_not_fit(tmp_path: Path, change: str):
    one = random_generator()
    tensors = dict(one.denoiser.state_dict())
    if change == "missing":
        tensors.popitem()
    else:
        tensors["more" if change == "extra" else next(iter(tensors))] = torch.zeros(1, 2, 3)
    checkpoint.write(tmp_path, tensors, one.description())
    with pytest.raises(InputError, match="no sfumato model, or a damaged one"):
        Generator.from_pretrained(tmp_path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("power")])
def test_a_failure_while_writing_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException):
    before = file.read_bytes()

    def half(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half a fi")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(InputError if isinstance(error, OSError) else type(error)) as caught:
        checkpoint.write(file.parent, {"w": torch.zeros(9)}, {})
    if isinstance(error, OSError):
        assert "no space is left" in str(caught.value) and "model.safetensors" in str(caught.value)
    assert file.read_bytes() == before
    assert sorted(p.name for p in file.parent.iterdir()) == ["config.json", "model.safetensors"]


def test_a_model_may_be_read_by_whom_the_umask_lets(tmp_path: Path):
    before = os.umask(0o022)
    try:
        checkpoint.write(tmp_path, TENSORS, DESCRIPTION)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o644}


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="taken"):
        checkpoint.write(tmp_path / "taken" / "run", TENSORS, DESCRIPTION)
