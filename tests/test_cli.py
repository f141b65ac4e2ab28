"""The command line: what goes where, what it says, and how it ends. Bad input is in test_bad_input.py."""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from helpers.commands import Command
from helpers.folders import write_images

RUN = "import sys; from sfumato.cli import main; sys.exit(main())"


# -- the command itself ----------------------------------------------------------------------------------------------


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from sfumato.cli import main; status = main(['--help']); "
        "loaded = {'torch', 'numpy', 'PIL', 'sklearn', 'matplotlib'} & set(sys.modules); sys.exit(str(loaded) if loaded else status)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for verb in ("demo", "train", "sample", "film", "edit", "vary", "evaluate", "data"):
        assert verb in ended.stdout


def test_the_installed_command_is_main() -> None:
    try:
        version("sfumato")
    except PackageNotFoundError:
        pytest.skip("sfumato is not installed")
    from sfumato.cli import main

    (command,) = entry_points(group="console_scripts", name="sfumato")
    assert command.load() is main


def test_version(sfumato: Command) -> None:
    import sfumato as package

    assert sfumato("--version") == (0, f"sfumato {package.__version__}\n", "")
    asked = subprocess.run([sys.executable, "-m", "sfumato", "--version"], capture_output=True, text=True, check=True)
    assert asked.stdout == f"sfumato {package.__version__}\n"


def test_help_lists_the_registries(sfumato: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.config import PRESETS, Config, described_settings
    from sfumato.data import SOURCES
    from sfumato.denoisers import NETWORKS
    from sfumato.metrics import FEATURES
    from sfumato.samplers import SAMPLERS

    explained = described_settings()
    settings = {f.name for f in fields(Config)} - {"options"}
    assert settings == set(next(iter(explained.values())))
    assert {"channels", "blocks"} < set(explained["Settings with network=unet"])
    assert all(text for keys in explained.values() for text in keys.values())
    monkeypatch.setenv("COLUMNS", "400")  # no name is broken over two lines
    for verb, names in {
        ("train",): [*PRESETS, *SOURCES, *NETWORKS, *(setting for keys in explained.values() for setting in keys)],
        **{(verb,): [*SAMPLERS, "--guidance"] for verb in ("sample", "film", "edit", "vary")},
        ("evaluate",): [*SAMPLERS, *SOURCES, *FEATURES],
        ("data", "check"): [*SOURCES],
    }.items():
        result = sfumato(*verb, "--help").done()
        assert all(name in result.out for name in names)
        assert not re.search(r"\{[a-z]", result.out)  # no placeholder was left


# -- train -----------------------------------------------------------------------------------------------------------


def test_train_says_what_comes_next(sfumato: Command, inside: Path) -> None:
    command = ("train", "--data", "digits", "--set", "batch=8", "--out", "a run")
    first = sfumato(*command, "--steps", "2").done()
    assert first.out.startswith("trained a run: 2 steps")
    assert first.err == "sfumato: training a run for 2 steps\n"
    follow = first.out.splitlines()[-1].removeprefix("next: sfumato ")
    assert sfumato(*shlex.split(follow)).status == 0
    assert (inside / "samples.png").exists()
    # The same again: there is nothing left to do, and nothing changes.
    model = (inside / "a run" / "model.safetensors").read_bytes()
    again = sfumato(*command, "--steps", "2")
    assert again.status == 0 and "has had its 2 steps already" in again.out
    assert (inside / "a run" / "model.safetensors").read_bytes() == model
    # A larger budget goes on.
    more = sfumato(*command, "--steps", "3", "--json")
    assert "resumed after step 2" in more.err
    result = json.loads(more.out)
    assert result["step"] == 3 and result["model"] == "a run" and len(result["losses"]) == 2


def test_settings_and_size_arrive(sfumato: Command, inside: Path) -> None:
    write_images(inside / "data", ("a", "b"), 4, side=20)
    options = "--steps 1 --size 24x16 --fit pad --preset tiny --set batch=4 --set learning_rate=1e-4 --seed 5"
    sfumato("train", "--data", "data", "--out", "run", *options.split()).done()
    described = json.loads((inside / "run" / "config.json").read_text())
    assert described["size"] == [16, 24]  # (H, W)
    assert described["classes"] == ["a", "b"]
    assert described["config"]["batch"] == 4 and described["config"]["learning_rate"] == 1e-4
    assert sfumato("sample", "run", "-n", "1", "-o", "out.npz").status == 0
    with np.load("out.npz") as drawn:
        assert drawn["images"].shape == (1, 16, 24, 1)


def test_an_interrupted_training_goes_on(sfumato: Command, inside: Path) -> None:
    words = ["train", "--data", "digits", "--set", "batch=8", "--out", "run", "--steps", "1000000"]
    with subprocess.Popen([sys.executable, "-c", RUN, *words], stderr=subprocess.PIPE, text=True) as process:
        try:
            give_up = time.monotonic() + 120
            while not (inside / "run" / "log.jsonl").exists() and process.poll() is None:
                assert time.monotonic() < give_up
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("sfumato: stopped after step ") and "re-run the command to resume" in last
    step = int(last.removeprefix("sfumato: stopped after step ").split(":")[0])
    assert sfumato("sample", "run", "-n", "2").status == 0  # what it has learned so far can be used
    # Where it goes on is at most one step from where it said (the signal may come between a step and its report).
    resumed = sfumato(*words[:-1], str(step + 3), "--json").done()
    found = resumed.err.split("resumed after step ")[1].split("\n")[0]
    assert int(found.replace(",", "")) in (step, step + 1)
    assert json.loads(resumed.out)["step"] == step + 3


def progress(**changes: Any) -> Any:
    from sfumato.engine import Progress

    values = {"step": 120, "images": 7_000, "epoch": 0.0, "seconds": 30.0, "loss": 0.6, "losses": (0.1, 0.2, 0.3)}
    values |= {"images_per_second": 4321.4, "fraction": 0.25, "skipped": 0, "learning_rate": 1e-3}
    return Progress(**(values | changes))  # type: ignore[arg-type]


def test_time_left_counts_this_session_only() -> None:
    from sfumato.cli.training import TrainingDisplay, clock

    display = TrainingDisplay("title")
    first = display.first = progress(seconds=100.0, fraction=0.5)  # of a run that goes on at half its budget
    assert display.left(first) == "?"
    # 10 s for 5% of the budget: 45% more take 90 s.
    assert display.left(progress(seconds=110.0, fraction=0.55)) == "1:30"
    text = display.text(progress(seconds=110.0, fraction=0.55))
    assert text == "1:30 left, loss 0.600 (0.100 0.200 0.300), 4,321 images/s, step 120"
    assert [clock(s) for s in (0, 59.6, 125, 3725)] == ["0:00", "1:00", "2:05", "1:02:05"]


def test_a_line_every_ten_seconds_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfumato.cli import training

    now = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    with training.TrainingDisplay("title") as display:
        for step in range(1, 26):
            now[0] = float(step)
            display.update(progress(step=step, fraction=step / 100, seconds=float(step)))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["sfumato: title", "sfumato: 10%", "sfumato: 20%"]
    assert "1:30 left" in lines[1]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.cli import training

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=70, color_system=None)
    monkeypatch.setattr(training, "stderr", lambda: console)
    with training.TrainingDisplay("title") as display:
        display.update(progress(fraction=0.25, seconds=10.0))
        display.update(progress(fraction=0.5, seconds=20.0))
    drawn = screen.getvalue().replace("\r", "\n").split("\n")
    assert any(" 50%" in line and "0:20 left" in line for line in drawn)


# -- sample ----------------------------------------------------------------------------------------------------------


def test_a_column_of_a_grid_holds_one_label() -> None:
    from sfumato.cli.request import columns_of

    for count, turns, columns in ((40, 10, 10), (8, 2, 2), (100, 2, 10), (9, 1, None), (5, 10, None), (99, 40, None)):
        assert columns_of(count, turns) == columns


def test_sample_writes_a_grid(sfumato: Command, inside: Path, digits_run: Path) -> None:
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        result = sfumato("sample", digits_run, "--label", "3", "-n", "4", "-o", name, "--seed", seed)
        assert (result.status, result.out, result.err) == (0, f"4 images: {name}\n", "")
    pictures = [(inside / name).read_bytes() for name in ("a.png", "b.png", "c.png")]
    assert pictures[0] == pictures[1] != pictures[2]
    with Image.open("a.png") as picture:
        assert picture.size == (2 * 96 + 6, 2 * 96 + 6)


def test_sample_writes_single_files_and_arrays(sfumato: Command, inside: Path, digits_run: Path) -> None:
    from sfumato.data import load

    how = ("--label", "3", "--label", "5", "-n", "4", "--steps", "4", "--guidance", "2", "--sampler", "euler")
    assert sfumato("sample", digits_run, *how, "-o", "new/folder/").status == 0
    result = sfumato("sample", digits_run, *how, "-o", "out.npz", "--json")
    assert json.loads(result.out)["labels"] == ["3", "5"]
    files = sorted((inside / "new" / "folder").iterdir())
    assert [file.name for file in files] == ["00000-3.png", "00001-5.png", "00002-3.png", "00003-5.png"]
    arrays = load("out.npz")
    assert arrays.labels is not None and [arrays.classes[i] for i in arrays.labels] == ["3", "5", "3", "5"]
    for file, image in zip(files, arrays.images, strict=True):
        with Image.open(file) as picture:
            assert np.array_equal(np.asarray(picture), image[..., 0])
    # A folder that is there counts as one without the slash.
    assert sfumato("sample", digits_run, "-n", "1", "-o", "new").status == 0
    assert (inside / "new" / "00000-0.png").exists()


def test_sample_is_what_the_library_draws(sfumato: Command, inside: Path, digits_run: Path) -> None:
    from sfumato import Generator
    from sfumato.core.pictures import to_bytes

    sfumato("sample", digits_run, "-n", "3", "--seed", "9", "--sampler", "ancestral", "-o", "out.npz").done()
    expected = to_bytes(Generator.from_pretrained(digits_run).sample(3, seed=9, sampler="ancestral"))
    with np.load("out.npz") as drawn:
        assert np.array_equal(drawn["images"], expected)
        assert drawn["labels"].tolist() == [0, 1, 2]


def test_film(sfumato: Command, inside: Path, digits_run: Path) -> None:
    assert sfumato("film", digits_run, "-o", "film.png").status == 0
    assert sfumato("film", digits_run, "-n", "3", "--label", "8", "-o", "three.png").status == 0
    with Image.open("film.png") as one, Image.open("three.png") as three:
        assert three.width == one.width and three.height > 2 * one.height


# -- the other verbs -------------------------------------------------------------------------------------------------


def test_data_check(sfumato: Command, inside: Path) -> None:
    write_images(inside / "photos", ("cat", "dog"), 3)
    (inside / "photos" / "cat" / "broken.png").write_bytes(b"no image")
    told = sfumato("data", "check", "photos", "-o", "preview.png")
    assert told.status == 0 and told.err == ""
    assert "photos: 6 images, 2 classes" in told.out
    assert "class cat: 3" in told.out and "broken.png" in told.out and "preview: preview.png" in told.out
    with Image.open("preview.png") as picture:
        assert picture.height > 2 * 96
    report = json.loads(sfumato("data", "check", "photos", "--json").out)
    assert report["count"] == 6 and report["classes"] == {"cat": 3, "dog": 3} and len(report["unreadable"]) == 1


def test_evaluate(sfumato: Command, inside: Path, digits_run: Path) -> None:
    command = ("evaluate", digits_run, "--data", "digits", "-n", "40", "--seed", "3")
    told = sfumato(*command).done()
    assert "40 samples, seed 3, dpmpp-2m" in told.out and "model vs train" in told.out
    result = json.loads(sfumato(*command, "--json", "-o", "report").out)
    assert result["samples"] == 40 and result["seed"] == 3 and list(result["features"]) == ["classifier"]
    frechet = result["features"]["classifier"]["model vs train"]["frechet"]
    assert f"{frechet:.4g}" in told.out  # the same numbers again
    assert sorted(path.name for path in (inside / "report").iterdir()) == ["evaluation.json", "nearest.png"]
    assert json.loads((inside / "report" / "evaluation.json").read_text()) == result


def test_demo(sfumato: Command, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures and what comes next; the page is in test_lecture.py."""
    from sfumato import lecture

    monkeypatch.setattr(lecture, "PARTS", lecture.PARTS[:1])
    result = json.loads(sfumato("demo", "--minutes", "0.02", "--json").done().out)
    assert result["data"] == "clothes"
    with Image.open(inside / result["samples"]) as picture:
        assert picture.height == 10 * (84 + 2) + 2  # a row a class, 28 pixels enlarged three times
    assert (inside / result["film"]).exists()
    told = sfumato("demo", "--minutes", "0.02")  # trained already: the page again
    assert told.status == 0, told.err
    follow = told.out.splitlines()[-1].removeprefix("next: sfumato ").replace("-n 64", "-n 2")
    assert sfumato(*shlex.split(follow)).status == 0


# -- errors ----------------------------------------------------------------------------------------------------------


def test_a_process_ends_with_the_status_and_one_sentence(inside: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", RUN, "sample", "missing"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("sfumato: missing does not exist") and ended.stderr.count("\n") == 1


def test_a_reader_that_has_seen_enough(inside: Path) -> None:
    """As in ``sfumato data check digits | true``."""
    words = [sys.executable, "-c", RUN, "data", "check", "digits"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0


def raising(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "GPU's memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "machine's memory"),
        (MemoryError(), "machine's memory"),
        (PermissionError(13, "Permission denied", "some/file"), "some/file"),
        (OSError(5, "Input/output error"), "disk reported an error"),
    ],
)
def test_what_the_machine_refuses(
    sfumato: Command, digits_run: Path, inside: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, words: str
) -> None:
    monkeypatch.setattr("sfumato.generator.Generator.sample", raising(error))
    assert words in sfumato("sample", digits_run).sentence


def test_interrupted(sfumato: Command, digits_run: Path, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.generator.Generator.sample", raising(KeyboardInterrupt()))
    assert sfumato("sample", digits_run) == (130, "", "sfumato: interrupted\n")


def test_bugs_are_not_hidden(sfumato: Command, digits_run: Path, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.generator.Generator.sample", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        sfumato("sample", digits_run)


def test_warnings_are_sentences(
    sfumato: Command, digits_run: Path, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfumato.generator import Generator

    draw = Generator.sample

    def with_remarks(self: Generator, *arguments: Any, **options: Any) -> Any:
        warnings.warn("mind\nthe gap", UserWarning, stacklevel=1)
        warnings.warn("for developers", DeprecationWarning, stacklevel=1)
        return draw(self, *arguments, **options)

    monkeypatch.setattr(Generator, "sample", with_remarks)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = sfumato("sample", digits_run, "-n", "1")
    assert result.status == 0 and result.err == "sfumato: mind the gap\n"
