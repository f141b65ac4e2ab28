"""Benchmarks: the pages are what the records say, each topic runs in small, and the parts that results hang on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import ablation, attacks, curves, features, generative, likelihood, packaged, report, speed
from benchmarks.__main__ import main, parser
from benchmarks.arms import ours
from benchmarks.arms.__main__ import main as train_arm
from benchmarks.attacks.peers import Call, Plain, run
from benchmarks.attacks.score import best_known, optimality
from benchmarks.attacks.targets import Target
from benchmarks.base import record, trial
from benchmarks.topics import TOPICS, find

from sfumato.classifiers import Classifier

INF = float("inf")


def test_optimality_by_hand():
    best = torch.tensor([1.0, 2.0, 4.0])
    assert optimality(best, best) == 1
    assert optimality(torch.full((3,), INF), best) == pytest.approx(0)
    # Areas under the steps up to 4: (2 + 2 + 4) / 3 against (1 + 2 + 4) / 3; room 4 - 7/3.
    assert optimality(torch.tensor([2.0, 2.0, 4.0]), best) == pytest.approx(1 - (1 / 3) / (5 / 3))


def test_optimality_is_the_ratio_of_integrated_accuracies():
    draw = np.random.default_rng(0)
    for clean in (1.0, 0.8):
        all_distances = torch.tensor(draw.gamma(2.0, size=(4, 50)))
        all_distances[torch.tensor(draw.random((4, 50)) < 0.2)] = INF
        best = best_known(all_distances)
        farthest = float(best[best.isfinite()].max())
        grid = np.linspace(0, farthest, 200_001)

        def area(distances: torch.Tensor, grid: np.ndarray = grid, clean: float = clean) -> float:
            accuracy = clean * (1 - np.searchsorted(np.sort(distances.numpy()), grid, side="right") / len(distances))
            return float(np.trapezoid(accuracy, grid))

        for distances in all_distances:
            wanted = 1 - (area(distances) - area(best)) / (clean * farthest - area(best))
            assert optimality(distances, best, clean) == pytest.approx(wanted, abs=1e-4)


def test_a_peer_is_counted_and_its_seed_holds():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    classifier = Classifier(model, mean=0.5, std=0.5)
    x, y = torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.int64)

    def peer(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, call: Call) -> torch.Tensor:
        print("chatter")
        for _ in range(call.steps):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(module(x).sum(), x)
            x = (x + call.eps * slope.sign() * torch.rand(1)).clamp(0, 1)
        with torch.no_grad():
            module(x[:2])
        return x

    first, counter = run(peer, classifier, x, y, Call("Linf", 0.1, 3, seed=1))
    again, _ = run(peer, classifier, x, y, Call("Linf", 0.1, 3, seed=1))
    other, _ = run(peer, classifier, x, y, Call("Linf", 0.1, 3, seed=2))
    assert (counter.forwards, counter.backwards) == (17, 15)
    assert not first.requires_grad and torch.equal(first, again) and not torch.equal(first, other)
    assert torch.allclose(Plain(classifier)(x), classifier(x))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a topic on digits, with records of its own; trainings take a second, in this process. Returns the records."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(time, "perf_counter", time.perf_counter)  # put back at the end
    monkeypatch.setattr(trial.subprocess, "run", lambda command, **_: train_arm(command[3:]))

    def begin(*arguments: object) -> list[record.Record]:
        main([*map(str, arguments), "--runs", str(tmp_path / "runs")])
        return record.read(str(arguments[0]))

    return begin


def test_the_pages_are_what_the_records_say():
    for file, text in report.pages().items():
        assert file.read_text() == text, f"{file.name} is stale: run python -m benchmarks report"


def test_commands_can_be_parsed_and_stay_in_the_repository():
    for topic in map(find, TOPICS):
        for command in [*topic.COMMANDS, *(claim.command for claim in topic.claims())]:
            for each in command.split("`, `"):
                assert parser().parse_args(each.split()).topic == topic.NAME
                assert "/" not in each.replace("8/255", "").replace("src/sfumato/packaged/emoji", "")


def test_every_record_has_its_machine_and_transcribed_ones_their_source():
    for name in TOPICS:
        assert record.read(name), name
    for cell in record.read(record.TRANSCRIBED):
        assert {"row", "column", "value", "machine", "command"} < set(cell) and "b601e2d" in cell["transcribed"]


def test_curves_of_distance_against_cost():
    line = [(1.0, 8.0), (2.0, 4.0), (4.0, 2.0)]
    assert curves.cost_at(line, 4.0) == (2.0, False) and curves.cost_at(line, 9.0) == (1.0, True)
    assert curves.cost_at(line, 1.0) is None and curves.distance_at(line, 0.5) is None
    assert curves.cost_at(line, 2.0**1.5)[0] == pytest.approx(2.0**1.5)  # type: ignore[index]
    assert curves.distance_at(line, 2.0**1.5) == pytest.approx(2.0**1.5) and curves.distance_at(line, 9.0) == 2.0


def test_prompts_of_the_packaged_model_that_no_caption_has():
    data: Any = type("Set", (), {"captions": (("a red heart", "a heart"), ("blue cat",))})()
    assert packaged.unseen(["a red cat", "the red heart", "cat of blue"], data) == ["a red cat"]


@pytest.mark.slow
def test_generators_in_small(small: Any, monkeypatch: pytest.MonkeyPatch):
    """The topics that train a generator, and the one that takes what they trained; judged by an untrained classifier."""
    untrained = features.classifier.SmallClassifier(1, 10).eval()
    monkeypatch.setattr(features.classifier, "train_classifier", lambda _: untrained)
    monkeypatch.setattr(generative, "BATCH", 5)
    monkeypatch.setattr(ablation, "IMAGES", 10)
    monkeypatch.setattr(ours, "LADDER", ours.Ladder(("dpmpp-2m:3", "heun:2")))
    monkeypatch.setattr(likelihood, "DRAWS", 4)
    monkeypatch.setattr(likelihood, "integral", lambda *_: {"images": 1})
    few = ("--data", "digits", "-n", 10, "--minutes", 0.01)
    (*_, line) = found = small("generative", "--arms", "ladder", *few)
    assert len(found) == 2 and line["arm"] == "ladder" and line["machine"]["threads"] == 1 and line["steps"] >= 1
    assert len(small("generative", "--arms", "ladder", *few)) == 2  # what is recorded is not measured again
    (line,) = small("ablation", "--only", "stages=1", *few)
    assert set(line["plain_errors"]) == {"0.05", "0.12", "0.25", "0.5", "1"} and len(line["results"]) == 2
    same = ("likelihood", "--arms", "ladder", "--data", "digits", "--minutes", 0.01)
    assert len(small(*same, "--count", 1, "--few", 1)) == 10


@pytest.mark.slow
def test_speed_in_small(small: Any, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"SIZES": (64,), "ENOUGH": 1e-4, "REPEATS": 1, "SAMPLED": 2}.items():
        monkeypatch.setattr(speed, name, value)
    (line,) = small("speed", "--data", "digits", "--memory-seconds", 0.1)
    assert line["memory_mib"] > 0 and sum(line["shares"].values()) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_defences_in_small(small: Any):
    some = ("--data", "digits", "-n", 2)
    seconds = ("--seconds", 0.6, "--generator-seconds", 0.3, "--samples", 130, "--alpha", 0.1)
    found = small("certificates", *some, *seconds, "--sigmas", 0.5, "--arms", "noise", "tuned")
    assert [each["arm"] for each in found] == ["noise", "tuned"]
    assert all(each["certified"]["1"]["count"] == 2 for each in found)
    assert len(small("sequential", "--repeats", 2)) == 2
    (line,) = small("hardening", *some, "--seconds", 0.6, "--methods", "fast")
    assert line["robust"]["count"] == 2 and sum(line["fooled_by"].values()) == 2
    effort = ("--attack-steps", 1, "--draws", 1, "--fixed-steps", 1, "--targets", 1)
    trained = ("--classifier-seconds", 0.3, "--generator-seconds", 0.3)
    found = small("purification", *some, *effort, *trained, "--arms", "purified", "diffusion-classifier")
    assert [each["arm"] for each in found] == ["purified", "diffusion-classifier"]


def test_attacks_in_small(small: Any, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    x = torch.rand(4, 1, 4, 4)
    classifier = Classifier(model, mean=0.5, std=0.5)
    target = Target("standard", classifier, x, classifier.predict(x), {"Linf": 0.1, "L2": 0.5, "L1": 1.0})
    monkeypatch.setattr(attacks, "find_target", lambda *_, **__: target)
    asked = ("attacks", "fixed", "minimal", "speed", "--targets", "standard", "--attacks", "pgd", "ddn", "--samples", 4)
    found = small(*asked, "--packages", "sfumato")
    assert [each["part"] for each in found] == ["fixed"] * 3 + ["minimal", "speed"]
    assert len(found[0]["robust"]) == len(found[3]["distances"]) == 4
    text = "\n".join(attacks.page())
    assert "Fixed size: standard" in text and "PGD, 40 gradients" in text and json.dumps(found[0])
