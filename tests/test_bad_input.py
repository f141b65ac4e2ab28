"""Every bad input on the command line: exit status 2, one sentence that helps, and nothing lost or half-written."""

from __future__ import annotations

import errno
import hashlib
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.commands import Command
from helpers.folders import write_images


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below ``folder`` with the hash of its bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# -- words and numbers that cannot be --------------------------------------------------------------------------------


TRAIN = {
    "--minutes 0": ("--minutes 0", "over 0"),
    "--minutes -3": ("--minutes -3",),
    "--minutes nan": ("--minutes nan",),
    "--images 0": ("--images 0",),
    "--steps 0": ("--steps 0",),
    "--steps 1 --minutes 1": ("minutes and steps", "one of them"),
    "--minutes soon": ("--minutes", "number", "sfumato train --help"),
    "--minuts 1": ("--minuts", "--minutes", "sfumato train --help"),
    "--preset smal": ("preset 'smal'", "did you mean 'small'"),
    "--set batsh=4": ("'batsh'", "did you mean 'batch'"),
    "--set batch=four": ("batch='four'", "whole number"),
    "--set batch=0": ("batch=0", "over 0"),
    "--set batch": ("--set 'batch'", "key=value"),
    "--set batch=1 --set batch=2": ("--set batch", "twice"),
    "--set network=unit": ("network 'unit'", "did you mean 'unet'"),
    "--set weights=edn": ("'edn'", "did you mean 'edm'"),
    "--set stages=9": ("8x8",),
    "--device gpu": ("'gpu'", "cuda"),
    "--fit krop": ("'krop'", "'crop'"),
    "--size big": ("--size 'big'", "64x48"),
    "--size 7": ("7",),
}
SAMPLE = {
    "--label twelve": ("'twelve'", "0, 1, 2"),
    "--label 10": ("'10'",),
    "--sampler huen": ("sampler 'huen'", "did you mean 'heun'"),
    "--steps 1": ("1 steps", "2 or more"),
    "--guidance -1": ("guidance -1",),
    "--guidance nan": ("guidance nan",),
    "-n 0": ("-n 0", "1 or more"),
    "-n many": ("-n", "sfumato sample --help"),
    "-o out.gif": ("'out.gif'", ".png"),
    "-o no/such/out.png": ("'no/such'", "no folder"),
    "--film": ("sfumato film",),
    "--output out.png": ("-o or --out",),
}


@pytest.mark.parametrize(("verb", "given"), [*(("train", one) for one in TRAIN), *(("sample", one) for one in SAMPLE)])
def test_train_and_sample_refuse(sfumato: Command, inside: Path, digits_run: Path, verb: str, given: str) -> None:
    words, table = (("--data", "digits", "--out", "run"), TRAIN) if verb == "train" else ((digits_run,), SAMPLE)
    sentence = sfumato(verb, *words, *given.split()).sentence
    assert all(word in sentence for word in table[given]), sentence
    assert not list(inside.iterdir())


def test_film_refuses(sfumato: Command, inside: Path, digits_run: Path) -> None:
    for out in ("out/", "out.npz"):
        assert ".png" in sfumato("film", digits_run, "-o", out).sentence
    assert "-n 0" in sfumato("film", digits_run, "-n", "0").sentence
    assert not list(inside.iterdir())


def test_a_label_is_suggested(sfumato: Command, inside: Path, small_fashion: Path) -> None:
    words = "--data fashion-mnist --size 8 --steps 1 --set batch=4 --out run"
    sfumato("train", *words.split()).done()
    assert "did you mean 'sneaker'" in sfumato("sample", "run", "--label", "sneeker").sentence


def test_usage(sfumato: Command) -> None:
    assert "did you mean 'train'" in sfumato("trian").sentence.lower()
    assert "'MODEL'" in sfumato("evaluate").sentence
    assert "--out" in sfumato("train", "--data", "digits").sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_where_there_is_none(sfumato: Command, inside: Path, digits_run: Path) -> None:
    for arguments in (("train", "--data", "digits", "--steps", "1", "--out", "run"), ("sample", digits_run)):
        sentence = sfumato(*arguments, "--device", "cuda").sentence
        assert "'cuda'" in sentence and "--device auto" in sentence
    assert not list(inside.iterdir())


# -- data ------------------------------------------------------------------------------------------------------------


def test_data_that_is_not_there(sfumato: Command, inside: Path) -> None:
    (inside / "empty").mkdir()
    (inside / "text.txt").write_text("hello")
    for source, words in {
        "./missing": ("missing", "does not exist"),
        "fashion-mnits": ("did you mean 'fashion-mnist'",),
        "empty": ("empty",),
        "text.txt": ("text.txt", "neither a folder nor"),
        "hf:nonsense": ("hf:owner/name",),
    }.items():
        for verb in (("data", "check", source), ("train", "--data", source, "--steps", "1", "--out", "run")):
            sentence = sfumato(*verb).sentence
            assert all(word in sentence for word in words), sentence
    assert not (inside / "run").exists()


def test_a_folder_without_a_readable_image(sfumato: Command, inside: Path) -> None:
    folder = inside / "broken" / "a"
    folder.mkdir(parents=True)
    (folder / "zero.png").touch()
    (folder / "text.jpg").write_text("no image at all")
    for verb in (("data", "check", "broken"), ("train", "--data", "broken", "--steps", "1", "--out", "run")):
        sentence = sfumato(*verb).sentence
        assert "broken" in sentence and "none of its 2 images" in sentence
    assert not (inside / "run").exists()


def odd_folder(folder: Path) -> tuple[Path, set[str]]:
    """Images of every awkward kind, four sound ones, and the names of those that cannot be used."""
    write_images(folder, ("cat",), 4, side=16, channels=3)
    (folder / "single").mkdir()
    numbers = np.random.default_rng(1)
    noise = Image.fromarray(numbers.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    noise.save(folder / "single" / "only.png")  # a class with one image
    cat = folder / "cat"
    noise.convert("CMYK").save(cat / "cmyk.jpg")
    noise.convert("P").save(cat / "palette.png")
    Image.fromarray(numbers.integers(0, 65536, (16, 16), dtype=np.uint16)).save(cat / "sixteen.png")
    noise.save(cat / "moving.gif", save_all=True, append_images=[noise.rotate(90), noise.rotate(180)])
    Image.new("RGB", (1, 1), "red").save(cat / "one.png")
    Image.new("1", (20_000, 20_000)).save(cat / "bomb.png")
    whole = (cat / "0.png").read_bytes()
    (cat / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (cat / "corrupt.png").write_bytes(whole[:60] + bytes(40) + whole[100:])
    (cat / "zero.png").touch()
    return folder, {"bomb.png", "truncated.png", "corrupt.png", "zero.png"}


def test_awkward_images_are_used_or_named(sfumato: Command, inside: Path) -> None:
    folder, unusable = odd_folder(inside / "odd")
    report = sfumato("data", "check", folder)
    assert report.status == 0 and report.err == "", report
    for name in unusable:
        assert name in report.out
    for name in ("cmyk.jpg", "palette.png", "sixteen.png", "moving.gif", "0.png"):
        assert name not in report.out
    trained = sfumato("train", "--data", folder, "--size", "16", "--steps", "1", "--set", "batch=4", "--out", "run")
    assert trained.status == 0, trained.err
    assert "skipped" in trained.err and "Traceback" not in trained.err
    assert sfumato("sample", "run", "--label", "single", "-n", "2", "-o", "s.png").status == 0


def test_evaluating_with_data_of_another_kind(sfumato: Command, inside: Path, digits_run: Path) -> None:
    write_images(inside / "colour", ("a", "b"), 60, channels=3)
    assert "channels" in sfumato("evaluate", digits_run, "--data", "colour", "-n", "10").sentence
    assert "n=1 " in sfumato("evaluate", digits_run, "--data", "digits", "-n", "1").sentence
    sentence = sfumato("evaluate", digits_run, "--data", "digits", "-n", "10", "--features", "clasifier").sentence
    assert "'classifier'" in sentence
    sentence = sfumato("evaluate", digits_run, "--data", "digits", "-n", "10", "--sampler", "oiler").sentence
    assert "did you mean 'euler'" in sentence


# -- models and run folders ------------------------------------------------------------------------------------------


def test_models_that_are_none(sfumato: Command, inside: Path) -> None:
    (inside / "folder").mkdir()
    (inside / "model.pt").write_bytes(b"\x80\x04.")
    (inside / "model.safetensors").write_bytes(b"no safetensors file")
    for model, words in {
        "missing": ("missing", "does not exist"),
        "folder": ("no model.safetensors in folder",),
        "model.pt": ("pickle",),
        "model.safetensors": ("damaged",),
    }.items():
        for verb in (("sample", model), ("evaluate", model, "--data", "digits")):
            sentence = sfumato(*verb).sentence
            assert all(word in sentence for word in words), sentence
    assert not (inside / "samples.png").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "train_state/state.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "tampered", "empty"])
def test_damaged_checkpoints(sfumato: Command, inside: Path, digits_run: Path, file: str, damage: str) -> None:
    shutil.copytree(digits_run, "run")
    whole = bytearray(Path("run", file).read_bytes())
    if damage == "tampered":
        whole[-5] ^= 1
    Path("run", file).write_bytes(whole[: {"truncated": len(whole) // 2, "tampered": None, "empty": 0}[damage]])
    before = snapshot(inside)
    if file == "model.safetensors":
        sentence = sfumato("sample", "run", "-o", "out.png").sentence
    else:
        sentence = sfumato("train", "--data", "digits", "--set", "batch=16", "--steps", "9", "--out", "run").sentence
    assert file in sentence
    assert snapshot(inside) == before


@pytest.mark.parametrize(
    ("words", "word"),
    [
        ("--data digits --set batch=8", "batch was 16, now 8"),
        ("--data digits --set batch=16 --seed 1", "seed was 0, now 1"),
        ("--data digits --set batch=16 --size 16", "size was"),
        ("--data other --set batch=16", "data was digits"),
    ],
)
def test_a_run_folder_of_another_run(sfumato: Command, inside: Path, digits_run: Path, words: str, word: str) -> None:
    shutil.copytree(digits_run, "run")
    write_images(inside / "other", tuple("0123456789"), 5)
    before = snapshot(inside)
    sentence = sfumato("train", *words.split(), "--steps", "9", "--out", "run").sentence
    assert word in sentence and "another --out" in sentence
    assert snapshot(inside) == before


def test_a_saved_model_is_not_overwritten(sfumato: Command, inside: Path, digits_run: Path) -> None:
    (inside / "run").mkdir()
    shutil.copy(digits_run / "model.safetensors", "run")
    before = snapshot(inside)
    sentence = sfumato("train", "--data", "digits", "--steps", "1", "--out", "run").sentence
    assert "train_state" in sentence
    assert snapshot(inside) == before


def test_guidance_and_labels_of_a_model_without(sfumato: Command, inside: Path) -> None:
    write_images(inside / "plain", (), 8)
    sfumato("train", "--data", "plain", "--steps", "1", "--set", "batch=4", "--out", "run").done()
    assert "without" in sfumato("sample", "run", "--guidance", "2").sentence
    assert "without labels" in sfumato("sample", "run", "--label", "cat").sentence
    assert sfumato("sample", "run", "-n", "2").status == 0


# -- places that cannot be written to --------------------------------------------------------------------------------


def test_places_that_are_no_folder(sfumato: Command, inside: Path, digits_run: Path) -> None:
    (inside / "file").write_text("here first")
    before = snapshot(inside)
    for out in ("file", "file/run"):
        assert "file" in sfumato("train", "--data", "digits", "--steps", "1", "--set", "batch=4", "--out", out).sentence
    for verb in (
        ("sample", digits_run, "-o", "file/"),
        ("sample", digits_run, "-o", "file/out.png"),
        ("data", "check", "digits", "-o", "file/out.png"),
        ("evaluate", digits_run, "--data", "digits", "-o", "file"),
        ("demo", "--out", "file"),
    ):
        assert "file" in sfumato(*verb).sentence
    assert snapshot(inside) == before


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "no space is left"), (errno.EACCES, "permission denied")])
def test_a_full_disk_and_no_permission(
    sfumato: Command, inside: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    shutil.copytree(digits_run, "run")
    before = snapshot(inside / "run")

    def refuse(*_: object) -> None:
        raise OSError(number, "as the system says")

    monkeypatch.setattr("sfumato.core.files._flush", refuse)
    assert words in sfumato("sample", "run", "-n", "2", "-o", "out.png").sentence
    assert words in sfumato("sample", "run", "-n", "2", "-o", "out.npz").sentence
    trained = sfumato("train", "--data", "digits", "--set", "batch=16", "--steps", "6", "--out", "run")
    assert trained.status == 2 and words in trained.err.splitlines()[-1] and "Traceback" not in trained.err
    after = snapshot(inside / "run")
    assert all(after[name] == digest for name, digest in before.items() if "safetensors" in name)
    assert {p.name for p in inside.iterdir()} == {"run"}
    assert not [p for p in inside.rglob("*") if p.name.startswith(".sfumato")]


def test_a_disk_that_ends_in_the_middle_of_a_file(sfumato: Command, inside: Path) -> None:
    """The real thing, as near as it can be had without a disk: the system refuses to let files grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        result = sfumato("train", "--data", "digits", "--set", "batch=4", "--steps", "1", "--out", "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.status == 2 and result.out == "" and "Traceback" not in result.err
    assert "state.safetensors" in result.err.splitlines()[-1]
    assert not list(inside.rglob("*.safetensors")) and not list(inside.rglob(".sfumato*"))
    sfumato("train", "--data", "digits", "--set", "batch=4", "--steps", "1", "--out", "run").done()
