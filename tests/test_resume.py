"""Stopping and going on: by kill -9, by Ctrl-C, by the end of the budget; the same weights to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.oracles import pictures
from helpers.runs import SETTINGS, STEPS, start
from sfumato.core import checkpoint
from sfumato.core.errors import InputError
from sfumato.engine import Average, Progress, loop
from sfumato.training import train
from sfumato.training.denoising import DenoisingObjective


def finish(out: Path, **how: Any) -> list[Progress]:
    return list(start(out, **how))


def tensors(out: Path) -> dict[str, torch.Tensor]:
    state = {f"state.{k}": v for k, v in load_file(out / "train_state" / "state.safetensors").items()}
    return {**load_file(out / "model.safetensors"), **state}


def assert_same(one: Path, other: Path) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stops."""
    out = tmp_path_factory.mktemp("whole")
    finish(out)
    return out


# -- kill -9 --------------------------------------------------------------------------------------------------------------


def test_killed_and_resumed_is_the_same_to_the_bit(tmp_path: Path, whole: Path):
    out = tmp_path / "run"
    script = textwrap.dedent(
        f"""
        import sys, time
        sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        from pathlib import Path
        from helpers.runs import start
        for progress in start(Path({str(out)!r})):
            print(progress.step, flush=True)
            time.sleep(0.05)
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 5:  # two checkpoints were written; step 5 will be lost
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    resumed = finish(out)
    assert 5 <= resumed[0].step <= 9 and resumed[-1].step == STEPS  # from a checkpoint, neither from start nor past it
    assert_same(out, whole)
    for line in (out / "log.jsonl").read_text().splitlines():
        json.loads(line)


def test_killed_before_the_first_checkpoint_starts_anew(tmp_path: Path, whole: Path):
    out = tmp_path / "run"
    (out / "train_state").mkdir(parents=True)
    (out / "train_state" / ".sfumato-half-1-aa.safetensors").write_bytes(b"half a file")
    assert finish(out)[0].step == 1
    assert_same(out, whole)


# -- Ctrl-C ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 6, 15])
def test_closed_and_resumed_is_the_same_to_the_bit(tmp_path: Path, whole: Path, stop: int):
    steps = start(tmp_path)
    for progress in steps:
        if progress.step == stop:
            steps.close()  # type: ignore[attr-defined]
            break
    rest = finish(tmp_path)
    assert rest[0].step == stop + 1  # nothing was lost
    assert_same(tmp_path, whole)


def test_stopped_again_and_again_is_the_same_to_the_bit(tmp_path: Path, whole: Path):
    for _ in range(5):
        steps = start(tmp_path)
        next(iter(steps))
        steps.close()  # type: ignore[attr-defined]
    assert finish(tmp_path)[0].step == 6
    assert_same(tmp_path, whole)


@pytest.mark.parametrize(
    ("owner", "method", "at"),
    [
        (DenoisingObjective, "batch", 1),
        (DenoisingObjective, "batch", 8),
        (Average, "update", 4),
        (DenoisingObjective, "learning_rate", 4),
    ],
)
def test_interrupted_within_a_step_is_the_same_to_the_bit(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, at: int
):
    """Ctrl-C can fall anywhere, between the update of the weights and of their average too."""
    true, calls = getattr(owner, method), iter(range(1, 10**6))

    def interrupt(*arguments: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return true(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(owner, method, interrupt)
        with pytest.raises(KeyboardInterrupt):
            finish(tmp_path)
    assert finish(tmp_path)[-1].step == STEPS
    assert_same(tmp_path, whole)


def test_a_real_interrupt_is_the_same_to_the_bit(tmp_path: Path, whole: Path):
    """SIGINT while steps run, at whatever point it falls."""
    out = tmp_path / "run"
    script = textwrap.dedent(
        f"""
        import sys
        sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        from pathlib import Path
        from helpers.runs import start
        try:
            for progress in start(Path({str(out)!r})):
                print(progress.step, flush=True)
        except KeyboardInterrupt:
            sys.exit(77)
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 4:
                time.sleep(0.004)
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
    assert process.returncode in (0, 77)  # (it may have been done already)
    finish(out)
    assert_same(out, whole)


def test_a_failed_checkpoint_leaves_the_last_one(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch):
    """The disk is full at the second checkpoint: a clear error, and the first one still goes on."""
    true = loop.checkpoint.save_file
    calls = []

    def full(found: Any, path: Any, metadata: Any) -> None:
        calls.append(path)
        if len(calls) > 2:  # state and model, once
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        true(found, path, metadata=metadata)

    with monkeypatch.context() as patched:
        patched.setattr(loop.checkpoint, "save_file", full)
        with pytest.raises(InputError, match="no space is left on the disk"):
            finish(tmp_path)
    assert finish(tmp_path)[0].step == 3
    assert_same(tmp_path, whole)


def test_a_stop_between_the_two_files_of_the_last_checkpoint_is_made_good(tmp_path: Path, whole: Path):
    finish(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert finish(tmp_path) == []  # no step is left to make
    assert_same(tmp_path, whole)


# -- budgets --------------------------------------------------------------------------------------------------------------


def test_a_budget_that_is_used_up_trains_no_more(tmp_path: Path):
    finish(tmp_path, steps=4)
    before = (tmp_path / "model.safetensors").read_bytes()
    assert finish(tmp_path, steps=4) == []
    assert finish(tmp_path, steps=3) == []
    assert finish(tmp_path, images=10) == []
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert train(pictures(), tmp_path, steps=4, settings=SETTINGS, device="cpu").sample(1, steps=4).shape == (
        1,
        1,
        8,
        8,
    )


def test_a_larger_budget_goes_on(tmp_path: Path):
    finish(tmp_path, steps=4)
    rest = finish(tmp_path, steps=6)
    assert [p.step for p in rest] == [5, 6] and rest[-1].images == 6 * 8 * 2


def test_budgets_in_images_resume_to_the_bit(tmp_path: Path):
    finish(tmp_path / "one", images=160)
    steps = start(tmp_path / "two", images=160)
    for _ in range(4):
        next(iter(steps))
    steps.close()  # type: ignore[attr-defined]
    finish(tmp_path / "two", images=160)
    assert_same(tmp_path / "one", tmp_path / "two")


def test_minutes_count_the_seconds_already_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]

    def clock() -> float:
        now[0] += 0.5
        return now[0]

    monkeypatch.setattr(loop.time, "perf_counter", clock)
    steps = start(tmp_path, minutes=1)
    for progress in steps:
        if progress.seconds > 40:
            break
    spent = progress.seconds
    steps.close()  # type: ignore[attr-defined]
    now[0] += 10_000  # the night in between does not count
    rest = finish(tmp_path, minutes=1)
    assert spent <= rest[0].seconds < spent + 10
    assert rest[-1].seconds < 75 and rest[-1].fraction == 1
    assert finish(tmp_path, minutes=1) == []


# -- optimisers and networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "muon"},
        {"sharing": "stage"},
        {"sharing": "rung", "rungs": "2,2", "target": "z_next"},
        {"drop": "0.5", "flip": "true"},
    ],
)
def test_every_kind_of_run_resumes_to_the_bit(tmp_path: Path, changes: dict[str, str]):
    finish(tmp_path / "one", steps=6, settings=changes)
    steps = start(tmp_path / "two", steps=6, settings=changes)
    for _ in range(3):
        next(iter(steps))
    steps.close()  # type: ignore[attr-defined]
    finish(tmp_path / "two", steps=6, settings=changes)
    assert_same(tmp_path / "one", tmp_path / "two")


def test_skipped_steps_and_the_halved_rate_are_remembered(tmp_path: Path):
    flat = {"warmup": "0"}
    steps = start(tmp_path, settings=flat)
    next(iter(steps))
    steps.close()  # type: ignore[attr-defined]
    file = tmp_path / "train_state" / "state.safetensors"
    found, stored = checkpoint.read(file)
    stored["numbers"] |= {"skipped": 6, "rate_factor": 0.25}
    checkpoint.write_tensors(file, found, stored)
    again = next(iter(start(tmp_path, settings=flat)))
    assert again.step == 2 and again.skipped == 6
    assert again.learning_rate == pytest.approx(0.25 * 5e-3)


# -- another run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"settings": {"batch": "16"}}, "batch was 8, now 16"),
        ({"settings": {"channels": "32,16"}}, r"channels was \[16, 16\], now \[32, 16\]"),
        ({"settings": {"drop": "0.2"}}, "drop was 0.1, now 0.2"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"data": pictures(count=30)}, "data was bars .48 images.*, now bars .30 images"),
        ({"data": pictures(seed=1)}, "data was bars"),
    ],
)
def test_another_run_is_refused_naming_the_difference(tmp_path: Path, how: dict[str, Any], words: str):
    finish(tmp_path, steps=2)
    before = tensors(tmp_path)
    with pytest.raises(InputError, match=words):
        start(tmp_path, steps=4, **how)
    after = tensors(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_without_a_state_is_not_overwritten(tmp_path: Path):
    generator = train(pictures(), tmp_path / "run", steps=2, settings=SETTINGS, device="cpu")
    generator.save(tmp_path / "saved")
    with pytest.raises(InputError, match="no train_state"):
        start(tmp_path / "saved")


@pytest.mark.parametrize("damage", ["truncate", "flip", "pickle", "foreign", "empty"])
def test_a_damaged_state_is_refused(tmp_path: Path, damage: str):
    finish(tmp_path, steps=2)
    file = tmp_path / "train_state" / "state.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[-5] ^= 4
    elif damage == "pickle":
        data = bytearray(b"\x80\x04K\x01.")
    elif damage == "foreign":
        data = bytearray((tmp_path / "model.safetensors").read_bytes())
    else:
        data = bytearray()
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"state\.safetensors|another run"):
        start(tmp_path, steps=4)
    assert file.read_bytes() == bytes(data)
