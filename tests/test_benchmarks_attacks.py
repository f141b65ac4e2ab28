"""The parts of the attacks' benchmark that results hang on: the optimality score, the counter, the peers' common call."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.attacks.peers import Plain, run
from benchmarks.attacks.score import best_known, optimality

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

    def peer(
        module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, norm: str, eps: float, steps: int, seed: int
    ) -> torch.Tensor:
        print("chatter")
        for _ in range(steps):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(module(x).sum(), x)
            x = (x + eps * slope.sign() * torch.rand(1)).clamp(0, 1)
        with torch.no_grad():
            module(x[:2])
        return x

    first, counter = run(peer, classifier, x, y, "Linf", 0.1, 3, seed=1)
    again, _ = run(peer, classifier, x, y, "Linf", 0.1, 3, seed=1)
    other, _ = run(peer, classifier, x, y, "Linf", 0.1, 3, seed=2)
    assert (counter.forwards, counter.backwards) == (17, 15)
    assert not first.requires_grad and torch.equal(first, again) and not torch.equal(first, other)
    assert torch.allclose(Plain(classifier)(x), classifier(x))
