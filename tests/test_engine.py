"""The engine with an objective of a few weights: what every training gets from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core import checkpoint
from sfumato.core.errors import InputError
from sfumato.engine import Average, Budget, Moment, Objective, Progress, Trainer, train_steps
from sfumato.engine.schedule import cosine, trapezoid


class Regression(Objective):
    """Least squares, through batch normalisation and dropout; ``broken`` steps have no finite loss."""

    steps_per_epoch = 4

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))
        super().__init__(network, [torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)], images_per_step=8)
        self.average = Average(network, lambda number: 1 / number)
        self.broken, self.error, self.finished = broken, 0.0, 0

    def losses(self, moment: Moment) -> Iterator[Tensor]:
        x = torch.randn(8, 3, generator=moment.generator())
        loss = F.mse_loss(self.network(x), x.sum(1, keepdim=True))
        self.error = float(loss.detach())
        yield loss * (float("nan") if moment.step + 1 in self.broken else 1)

    def learning_rate(self, moment: Moment) -> float:
        return cosine(0.1, moment.fraction, rise=0.1)

    def metrics(self) -> dict[str, float]:
        return {"error": self.error}

    def after_step(self, moment: Moment) -> str:
        return "a remark" if moment.step == 3 else ""

    def finish(self, out: Path, progress: Progress) -> None:
        self.finished = progress.step


def run(out: Path | None = None, objective: Regression | None = None, **budget: Any) -> list[Progress]:
    return list(train_steps(objective or Regression(), Budget(**budget), seed=1, out=out, identity={"data": "made"}))


def state(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.tensors().items()}


def test_progress_of_a_training_in_memory():
    objective = Regression()
    steps = run(objective=objective, epochs=2)
    assert [step.step for step in steps] == list(range(1, 9)) and steps[-1].images == 64
    assert steps[-1].epoch == 2 and steps[-1].fraction == 1 and steps[3].fraction == 0.5
    assert [step.remark for step in steps] == ["", "", "a remark", *[""] * 5]
    assert steps[-1].loss == pytest.approx(steps[-1].metrics["error"]) and not objective.network.training
    assert objective.finished == 0  # there is no folder to finish


def test_a_step_that_is_not_finite_leaves_no_trace():
    """Weights, running statistics, momentum and average stay; the next step is made as if nothing had been."""
    trainer = Trainer(Regression(broken=(2,)), 1)
    trainer.advance(0.5)
    before = state(trainer)
    assert not trainer.advance(0.5) and trainer.skipped == 1
    after = state(trainer)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert trainer.advance(0.5) and not torch.equal(before["weight.2.weight"], trainer.tensors()["weight.2.weight"])


def test_giving_up_keeps_the_last_good_weights(tmp_path: Path):
    with pytest.raises(
        InputError, match=r"not been finite for 30 steps in a row \(step 34\): start again with another"
    ):
        run(tmp_path, Regression(broken=tuple(range(5, 99))), steps=100)
    tensors, stored = checkpoint.read(tmp_path / "train_state" / "state.safetensors")
    assert stored["numbers"]["updates"] == 4 and all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


@pytest.mark.parametrize("stop", [1, 5])
def test_stopped_and_resumed_is_the_same_to_the_bit(tmp_path: Path, stop: int):
    whole, first, rest = Regression(), Regression(), Regression()
    run(tmp_path / "whole", whole, steps=9)
    steps = train_steps(first, Budget(steps=9), seed=1, out=tmp_path / "parts", identity={"data": "made"})
    for _ in range(stop):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert [step.step for step in run(tmp_path / "parts", rest, steps=9)] == list(range(stop + 1, 10))
    assert (first.finished, rest.finished, whole.finished) == (0, 9, 9)
    assert whole.average is not None and rest.average is not None
    for one, other in ((whole.network, rest.network), (whole.average.module, rest.average.module)):
        assert all(
            torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )
    with pytest.raises(InputError, match="data was made, now other"):
        train_steps(Regression(), Budget(steps=9), seed=1, out=tmp_path / "parts", identity={"data": "other"})


def test_schedules_begin_low_and_end_at_nothing():
    for rates in (
        [cosine(2.0, f / 20, rise=0.1) for f in range(21)],
        [trapezoid(2.0, f / 20, rise=0.1, decay=0.5) for f in range(21)],
    ):
        assert rates[0] < 0.05 and max(rates) == pytest.approx(2.0, rel=0.05) and rates[-1] == pytest.approx(0.0)
        peak = rates.index(max(rates))
        assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
