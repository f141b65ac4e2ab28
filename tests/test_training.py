"""Batches, the average, the schedule, broken losses, budgets and the log; with networks of a few thousand weights."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.oracles import TINY, pictures
from sfumato import TrainingRequest, training_steps
from sfumato.conditions import Condition
from sfumato.config import Config
from sfumato.core.errors import InputError
from sfumato.engine import Average, Budget, Moment, Progress, Trainer, loop
from sfumato.engine.average import gamma_of_width, power_function
from sfumato.engine.trainer import GIVE_UP
from sfumato.training import denoising, train
from sfumato.training.denoising import DenoisingObjective

SETTINGS = {**TINY, "batch": "8"}
CPU = torch.device("cpu")


def config_of(**settings: str) -> Config:
    return Config(stages=2).with_settings({**SETTINGS, **settings})


def objective_of(data: Any = None, **settings: str) -> DenoisingObjective:
    return DenoisingObjective(config_of(**settings), pictures() if data is None else data, CPU, 0)


def trainer_of(**settings: str) -> Trainer:
    return Trainer(objective_of(**settings), 0)


def averages(trainer: Trainer) -> dict[str, torch.nn.Parameter]:
    assert trainer.objective.average is not None
    return trainer.objective.average.averages


def steps_of(out: Path, **how: Any) -> list[Progress]:
    how = {"settings": {**SETTINGS, **how.pop("settings", {})}, "device": "cpu", **how}
    return list(training_steps(TrainingRequest(pictures(), out, **how)))


# -- batches -----------------------------------------------------------------------------------------------------------


def test_batches_are_images_with_their_labels():
    data = pictures()
    x, c = objective_of(data, drop="0.3").batch(400, torch.Generator().manual_seed(0))
    assert c.label is not None and c.present is not None
    assert float((~c.present).float().mean()) == pytest.approx(0.3, abs=0.08)
    images = (2 * data.pixels(slice(None)) - 1).flatten(1)
    for image, one in zip(x.flatten(1), c.label, strict=True):
        found = (images - image).abs().amax(1).argmin()
        assert torch.equal(images[found], image) and int(one) == int(data.labels[found])  # type: ignore[index]


def test_flips_mirror_half_of_the_images():
    data = pictures(count=8)
    data.images[:, :, :4] = 0  # dark on the left
    data.images[:, :, 4:] = 200
    x, _ = objective_of(data, flip="true").batch(400, torch.Generator().manual_seed(0))
    mirrored = x[:, 0, 0, 0] > x[:, 0, 0, -1]
    assert float(mirrored.float().mean()) == pytest.approx(0.5, abs=0.08)


# -- the average and the schedule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.05, 0.2])
def test_average_is_the_closed_form(width: float):
    run = trainer_of(ema=str(width))
    gamma = gamma_of_width(width)
    name = next(n for n in run.parameters if n.endswith("read.1.weight"))
    seen = []
    for _ in range(8):
        run.advance(0.3)
        seen.append(run.parameters[name].detach().clone())
    keep = [(1 - 1 / t) ** (gamma + 1) for t in range(1, 9)]
    shares = [(1 - keep[i]) * math.prod(keep[i + 1 :]) for i in range(8)]
    assert sum(shares) == pytest.approx(1)
    expected = sum(share * weight for share, weight in zip(shares, seen, strict=True))
    torch.testing.assert_close(averages(run)[name], expected, rtol=1e-4, atol=1e-6)


def test_average_follows_a_power_function():
    """Weights 1, 2, 3, ... averaged: close to the integral of t * t^gamma."""
    network, gamma = torch.nn.Linear(1, 1), gamma_of_width(0.1)
    average = Average(network, power_function(0.1))
    for i in range(1, 401):
        torch.nn.init.constant_(network.weight, float(i))
        average.update(i)
    value = float(average.averages["weight"])
    assert value == pytest.approx(400 * (gamma + 1) / (gamma + 2), rel=0.01)


def test_learning_rate_rises_stays_and_falls():
    objective = objective_of(learning_rate="0.01", warmup="0.1", decay="0.4")
    rates = [objective.learning_rate(Moment(0, f, 0)) for f in (0.0, 0.05, 0.1, 0.3, 0.6, 0.8, 0.9, 1.0, 1.5)]
    assert 0 < rates[0] < 0.001
    assert rates[1] == pytest.approx(0.0051)
    assert rates[2:5] == pytest.approx([0.01] * 3)
    assert rates[5:] == pytest.approx([0.005, 0.0025, 0.0, 0.0])
    flat = objective_of(learning_rate="0.01", warmup="0", decay="0")
    assert [flat.learning_rate(Moment(0, f, 0)) for f in (0.0, 0.5, 1.0)] == pytest.approx([0.01] * 3)


def test_learning_rate_reaches_the_optimiser():
    run = trainer_of(learning_rate="0.01", warmup="0", decay="0.5")
    for factor in (1.0, 0.25):
        run.rate_factor = factor
        run.advance(0.75)
        for optimizer in run.objective.optimizers:
            assert all(g["lr"] == pytest.approx(0.005 * factor) for g in optimizer.param_groups)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_optimiser_moves_every_weight(optimizer: str):
    run = trainer_of(optimizer=optimizer, drop="0.5", batch="16")
    before = {name: p.detach().clone() for name, p in run.parameters.items()}
    for _ in range(4):
        assert run.advance(0.3)
    still = [n for n, p in run.parameters.items() if torch.equal(p, before[n])]
    assert still == []


# -- whole runs -----------------------------------------------------------------------------------------------------------


def test_a_few_pictures_are_learnt_by_heart(tmp_path: Path):
    data = pictures(count=6)
    settings = {**SETTINGS, "batch": "32", "learning_rate": "5e-3", "channels": "32,32"}
    steps = list(training_steps(TrainingRequest(data, tmp_path, steps=150, settings=settings, device="cpu")))
    assert steps[-1].loss < 0.5 * steps[5].loss
    generator = train(data, tmp_path, steps=150, settings=settings, device="cpu")
    drawn = generator.sample(24, steps=12)
    clean = data.pixels(slice(None))
    labels = torch.tensor(data.labels)
    guess = (drawn[:, None] - clean[None]).square().mean((2, 3, 4)).argmin(1)
    right = (labels[guess] == torch.arange(24) % 3).float().mean()
    assert float(right) > 0.8  # what it draws for a label is near that label's pictures; chance is 1/3


@pytest.mark.parametrize("sharing", ["shared", "stage", "rung"])
def test_digits_with_the_lectures_target(tmp_path: Path, sharing: str):
    """Target z_next on fixed rungs, with one network for all, one a stage, and one a rung (the lecture to the letter)."""
    settings = {**SETTINGS, "target": "z_next", "rungs": "2,2", "sharing": sharing, "stages": "2"}
    generator = train("digits", tmp_path, steps=16, settings=settings, device="cpu")
    assert len(generator.denoiser.networks) == {"shared": 1, "stage": 2, "rung": 4}[sharing]
    pixels = generator.sample(3, "7")
    assert pixels.shape == (3, 1, 8, 8) and bool(torch.isfinite(pixels).all())
    assert list((tmp_path / "samples").glob("*.png"))


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "dit", "channels": "64", "depth": "1"},
        {"optimizer": "muon"},
        {"stages": "1"},
        {"mix": "0.5,1"},
        {"levels": "logit-normal"},
    ],
)
def test_other_configurations_train(tmp_path: Path, changes: dict[str, str]):
    settings = {"batch": "4", "precision": "float32", **changes}
    if "network" not in changes:
        settings = {**SETTINGS, **settings}
    generator = train(pictures(labelled=False, channels=3), tmp_path, steps=2, settings=settings, device="cpu")
    assert generator.classes == () and generator.sample(1, steps=4).shape == (1, 3, 8, 8)


def test_the_run_folder(tmp_path: Path):
    seen = steps_of(tmp_path / "deep" / "run", images=8 * 2 * 16)
    folder = tmp_path / "deep" / "run"
    assert [p.step for p in seen] == list(range(1, 17))
    assert seen[-1].fraction == 1 and seen[-1].images == 256
    assert all(len(p.losses) == 2 and p.loss == pytest.approx(sum(p.losses)) for p in seen)
    names = {p.name for p in folder.iterdir()}
    assert {"model.safetensors", "config.json", "train_state", "log.jsonl", "samples"} <= names
    assert len(list((folder / "samples").glob("*.png"))) == 8
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 16 and lines[-1]["skipped"] == 0
    assert {"step", "images", "seconds", "loss", "losses", "learning_rate", "images_per_second"} <= set(lines[-1])
    description = json.loads((folder / "config.json").read_text())
    assert description["classes"] == ["red", "green", "blue"] and description["size"] == [8, 8]


def test_the_saved_model_is_the_average(tmp_path: Path):
    generator = train(pictures(), tmp_path, steps=3, settings=SETTINGS, device="cpu")
    run = trainer_of()
    for i in range(3):
        run.advance(i / 3)
    for name, value in generator.denoiser.named_parameters():
        torch.testing.assert_close(value, averages(run)[name])


def test_training_touches_no_global_random_state(tmp_path: Path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    steps_of(tmp_path, steps=2)
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_differ(tmp_path: Path):
    one, same, other = (
        train(pictures(), tmp_path / str(i), steps=2, settings=SETTINGS, device="cpu", seed=seed)
        for i, seed in enumerate((0, 0, 1))
    )
    name = "networks.0.read.1.weight"
    assert torch.equal(one.denoiser.state_dict()[name], same.denoiser.state_dict()[name])
    assert not torch.equal(one.denoiser.state_dict()[name], other.denoiser.state_dict()[name])


# -- a loss that is not finite --------------------------------------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Make the loss nan in these steps (the first is 1)."""

    def apply(steps: set[int]) -> None:
        true = denoising.stage_loss
        calls = iter(range(10**6))

        def loss(
            denoiser: Any, config: Config, x: Tensor, c: Condition, stage: int, generator: torch.Generator
        ) -> Tensor:
            step = next(calls) // 2 + 1  # two stages
            value = true(denoiser, config, x, c, stage, generator)
            return value * float("nan") if step in steps else value

        monkeypatch.setattr(denoising, "stage_loss", loss)

    return apply


def test_a_broken_loss_is_skipped_and_reported(broken: Callable[[set[int]], None]):
    run = trainer_of()
    broken({2})
    run.advance(0.3)
    state = {name: p.detach().clone() for name, p in run.parameters.items()}
    before = {name: p.clone() for name, p in averages(run).items()}
    assert not run.advance(0.3) and run.skipped == 1 and run.step == 2 and run.updates == 1
    assert all(torch.equal(p, state[n]) for n, p in run.parameters.items())
    assert all(torch.equal(p, before[n]) for n, p in averages(run).items())
    assert run.advance(0.3) and run.failures == 0


def test_three_in_a_row_halve_the_rate(broken: Callable[[set[int]], None]):
    run = trainer_of()
    broken({1, 2, 3, 5, 6, 8})
    factors, remarks = [], []
    for _ in range(8):
        run.advance(0.3)
        factors.append(run.rate_factor)
        remarks.append(run.remark)
    assert factors == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5] and run.skipped == 6
    assert [bool(remark) for remark in remarks] == [False, False, True, *[False] * 5] and "halved" in remarks[2]


def test_training_gives_up_with_advice(tmp_path: Path, broken: Callable[[set[int]], None]):
    broken(set(range(3, 1000)))
    steps = training_steps(TrainingRequest(pictures(), tmp_path, steps=1000, settings=SETTINGS, device="cpu"))
    seen = []
    with pytest.raises(InputError, match="learning_rate"):
        for progress in steps:
            seen.append(progress)
    assert len(seen) == 2 + GIVE_UP - 1 and seen[-1].skipped == GIVE_UP - 1


def strict_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; what Python reads as JSON but JSON does not know (NaN, Infinity) fails."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("where", [{1}, {2, 3}])
def test_the_shown_loss_recovers(tmp_path: Path, broken: Callable[[set[int]], None], where: set[int]):
    """One bad step must not spoil the numbers shown ever after, nor write what is no JSON."""
    broken(where)
    seen = steps_of(tmp_path, steps=8)
    assert seen[-1].skipped == len(where)
    assert math.isfinite(seen[-1].loss)
    assert [line["step"] for line in strict_log(tmp_path)][-1] == 8


def test_a_log_of_nothing_but_broken_steps_is_still_json(tmp_path: Path, broken: Callable[[set[int]], None]):
    broken({1, 2})
    steps_of(tmp_path, steps=2)
    assert strict_log(tmp_path)[-1]["loss"] is None


# -- budgets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"minutes": 0}, "--minutes 0"),
        ({"minutes": -1}, "--minutes -1"),
        ({"minutes": float("nan")}, "--minutes nan"),
        ({"minutes": float("inf")}, "--minutes inf"),
        ({"images": 0}, "--images 0"),
        ({"steps": -5}, "--steps -5"),
        ({"minutes": 1, "steps": 5}, "minutes and steps"),
    ],
)
def test_impossible_budgets(tmp_path: Path, budget: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        training_steps(TrainingRequest(pictures(), tmp_path / "run", settings=SETTINGS, **budget))
    assert not (tmp_path / "run").exists()


def test_fractions_of_budgets():
    used = {"seconds": 30.0, "images": 25, "steps": 2, "epochs": 0.5}
    for budget in (Budget(minutes=2), Budget(images=100), Budget(steps=8), Budget(epochs=2)):
        assert budget.fraction(**used) == 0.25  # type: ignore[arg-type]
    assert Budget(minutes=2, epochs=1).fraction(**used) == 0.5  # type: ignore[arg-type]  (what comes first)
    assert TrainingRequest("digits", "run").budget == Budget(minutes=15)
    assert str(Budget(minutes=1, epochs=60)) == "1 minute or 60 epochs" and str(Budget(images=1000)) == "1,000 images"


def test_minutes_end_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a clock that moves half a second whenever it is read."""
    clock = ticking()
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock))
    seen = steps_of(tmp_path, minutes=0.5)
    assert seen[-1].fraction == 1 and seen[-1].seconds >= 30
    assert all(p.seconds < 30 for p in seen[:-1])
    assert [p.seconds for p in seen] == sorted(p.seconds for p in seen)


def ticking(step: float = 0.5) -> Iterator[float]:
    now = 1000.0
    while True:
        now += step
        yield now


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"settings": {"lerning_rate": "1"}}, "did you mean 'learning_rate'"),
        ({"settings": {"ema": "0.5"}}, "ema=0.5"),
        ({"preset": "smal"}, "did you mean 'small'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"out": "file"}, "file is a file"),
        ({"out": "file/run"}, "file"),
        ({"data": "digitz"}, "digits"),
        ({"settings": {"channels": "16,16,16,16,16,16", "blocks": "1,1,1,1,1,1"}}, "6 levels"),
    ],
)
def test_other_errors_come_before_the_first_step(tmp_path: Path, how: dict[str, Any], words: str):
    """From the call itself, not when the first step is asked for; and nothing is written."""
    (tmp_path / "file").write_text("x")
    call: dict[str, Any] = {
        "data": pictures(),
        "steps": 2,
        "device": "cpu",
        **how,
        "out": tmp_path / how.get("out", "run"),
    }
    with pytest.raises(InputError, match=words):
        training_steps(TrainingRequest(**call))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_where_there_is_none(tmp_path: Path):
    with pytest.raises(InputError, match="no such GPU"):
        training_steps(TrainingRequest(pictures(), tmp_path, steps=1, device="cuda"))


def test_steps_are_quick_to_begin(tmp_path: Path):
    """Calling alone trains nothing: the steps are made as they are asked for."""
    steps = training_steps(TrainingRequest(pictures(), tmp_path, steps=10**9, settings=SETTINGS, device="cpu"))
    began = time.monotonic()
    assert next(iter(steps)).step == 1
    assert time.monotonic() - began < 60
