"""The four numbers: known values on a constructed defence, weak attacks against exact ones, resumption."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm as normal
from torch import Tensor, nn

from sfumato.attacks.context import AttackContext
from sfumato.attacks.norms import norm_of
from sfumato.classifiers import Accuracy, Classifier
from sfumato.core.errors import InputError
from sfumato.defences import Effort, Purifier, purification_protocol
from sfumato.defences.purification.attacks import ATTACKS, PurificationContext, attacks_on
from sfumato.defences.purification.protocol import FIXED_NOISE, accuracies
from sfumato.ladder import Ladder

SIDE, PIXELS = 4, 16
LADDER = Ladder((SIDE, SIDE), stages=1, jumps=(10.0,))
EFFORT = Effort(steps=6, draws=4, submissions=10, fixed_steps=6, targets=1)


class Bright(nn.Module):
    """Two classes, dark and bright: how far the mean pixel is over a half, times 8."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(8.0))

    def forward(self, x: Tensor) -> Tensor:
        over = self.scale * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-over, over], 1)


def bright_images(count: int, brightness: float) -> tuple[Classifier, Tensor, Tensor]:
    return Classifier(Bright()), torch.full((count, 1, SIDE, SIDE), brightness), torch.ones(count, dtype=torch.int64)


def test_a_purifier_that_only_adds_noise_has_the_numbers_of_a_normal_distribution() -> None:
    classifier, x, y = bright_images(200, 0.62)
    purifier = Purifier(lambda z, sigma, stage: z, LADDER, sigma=0.2, steps=1)  # D(x) = x + 0.2 e: mean e is N(0, 1/16)
    found = purification_protocol(classifier, purifier, x, y, eps=0.05, effort=EFFORT, seed=1).report

    def right(brightness: float) -> float:
        return float(normal.cdf((brightness - 0.5) / (0.2 / math.sqrt(PIXELS))))

    assert set(ATTACKS) - {each["name"] for each in found["attacks"]} == {"one-step"}  # it is its own surrogate
    # Under any attack that follows a gradient all pixels are 0.05 darker: nothing better can be done.
    attacked = [(row, right(0.57)) for row in (*found["attacks"], found["robust"])]
    for row, p in ((found["clean"], right(0.62)), *attacked):
        assert row["average"]["accuracy"] == pytest.approx(p, abs=3 * math.sqrt(p * (1 - p) / 2000))
        all_ten = p**10
        assert row["worst"]["accuracy"] == pytest.approx(all_ten, abs=3 * math.sqrt(all_ten * (1 - all_ten) / 200))
        most = sum(math.comb(10, k) * p**k * (1 - p) ** (10 - k) for k in range(6, 11))
        assert row["majority"]["accuracy"] == pytest.approx(most, abs=3 * math.sqrt(most * (1 - most) / 200) + 0.003)
        assert row["worst"]["accuracy"] <= min(row["average"]["accuracy"], row["majority"]["accuracy"])
        for value in row.values():
            if isinstance(value, dict):
                assert value["low"] <= value["accuracy"] <= value["high"]
    assert found["undefended"]["clean"]["accuracy"] == found["undefended"]["robust"]["accuracy"] == 1  # 0.57 is bright


def test_against_noise_that_is_known_the_verdict_is_that_of_the_noise() -> None:
    purifier = Purifier(lambda z, sigma, stage: z, LADDER, sigma=0.2, steps=1)
    verdicts = []
    for seed in range(6):
        shift = 0.2 * float(purifier.noise([0], seed ^ FIXED_NOISE)[0].mean())
        for brightness in (0.5 - shift + 0.04, 0.5 - shift + 0.06):
            classifier, x, y = bright_images(2, brightness)
            found = purification_protocol(classifier, purifier, x, y, eps=0.05, effort=EFFORT, seed=seed)
            fixed = found.report["fixed"]
            assert fixed["clean"]["accuracy"] == 1
            verdicts.append(fixed["robust"]["accuracy"])
    assert verdicts == [0, 1] * 6


def test_weak_attacks_miss_what_exact_gradients_find() -> None:
    """The second step turns images into their negatives: what does not look through it is led away."""
    classifier, x, _ = bright_images(20, 0.42)
    purifier = Purifier(lambda z, sigma, stage: z if sigma > 0.03 else -z, LADDER, sigma=0.02, steps=2)
    found = purification_protocol(classifier, purifier, x, torch.ones(20, dtype=torch.int64), eps=0.1, effort=EFFORT)
    rows = {row["name"]: row for row in found.report["attacks"]}
    assert all(rows[name]["average"]["accuracy"] == 1 for name in ("transfer", "bpda", "one-step"))
    assert found.report["weak"]["average"]["accuracy"] == found.report["clean"]["average"]["accuracy"] == 1
    assert rows["pgd"]["average"]["accuracy"] == rows["apgd"]["average"]["accuracy"] == 0
    assert found.report["robust"]["average"]["accuracy"] == 0 and found.report["fixed"]["robust"]["accuracy"] == 0
    assert found.report["undefended"]["clean"]["accuracy"] == 0
    # The best attack of each image is chosen by the attacker's own draws, and is shown.
    chosen = [list(attacks_on(purifier))[number] for number in found.arrays["chosen"]]
    assert set(chosen) <= {"pgd", "apgd"}
    clean, attacked, pure = found.pictures.unbind(1)
    assert (attacked - clean).abs().amax() <= 0.1 + 1e-6 and attacked.mean() > 0.5 and pure.mean() < 0.5
    assert found.pictured.tolist() == [0] * 6
    says = " ".join(found.report["says"])
    assert "transfer 100.0%, BPDA 100.0%, surrogate 100.0% are left" in says and "by those that do 0.0%" in says
    assert "exact gradients find no more" not in says


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.5), ("L1", 2.0)])
def test_every_attack_stays_in_ball_and_box(norm: str, eps: float) -> None:
    torch.manual_seed(0)
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 3)))
    purifier = Purifier(lambda z, sigma, stage: z.tanh(), LADDER, sigma=0.2, steps=2)
    x, y = torch.rand(3, 1, SIDE, SIDE), torch.tensor([0, 1, 2])
    for name, attack in ATTACKS.items():
        effort = Effort(steps=4, draws=2, restarts=2, fixed_steps=4)
        images = AttackContext.of(classifier, x, y, norm=norm, eps=eps, ids=[3, 1, 9])
        x_adv = attack.run(PurificationContext(images, purifier, effort))
        assert bool((norm_of(x_adv - x, norm) <= eps * (1 + 1e-5)).all()), name
        assert bool(((x_adv >= 0) & (x_adv <= 1)).all()) and not torch.equal(x_adv, x)


def test_images_do_not_depend_on_their_company_and_parts_are_taken_as_they_were() -> None:
    torch.manual_seed(0)
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 8), nn.Tanh(), nn.Linear(8, 3)))
    purifier = Purifier(lambda z, sigma, stage: (1.5 * z).tanh(), LADDER, sigma=0.3, steps=2)
    x, y = torch.rand(20, 1, SIDE, SIDE), torch.arange(20) % 3
    kept: dict[str, dict[str, Tensor]] = {}
    asked: list[str] = []

    def keep(name: str, compute: Any) -> dict[str, Tensor]:
        asked.append(name)
        if name not in kept:
            kept[name] = compute()
        return kept[name]

    done: list[tuple[int, int]] = []
    how: dict[str, Any] = {"eps": 0.1, "effort": EFFORT}
    whole = purification_protocol(classifier, purifier, x, y, keep=keep, progress=lambda *at: done.append(at), **how)
    assert len(asked) == len(set(asked)) == 2 * (len(ATTACKS) + 3) + 1  # two groups of images
    assert done[-1][0] == done[-1][1] and done == sorted(done)
    again = purification_protocol(classifier, purifier, x, y, keep=keep, **how)
    assert again.report == whole.report and len(asked) == 2 * len(set(asked))
    some = [17, 2, 5]
    few = purification_protocol(classifier, purifier, x[some], y[some], ids=some, **how)
    for name, array in few.arrays.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, whole.arrays[name][..., some], rtol=1e-4, atol=1e-4)
        elif name != "chosen":
            np.testing.assert_array_equal(array, whole.arrays[name][..., some])
    # The headline is never above an attack of its own.
    for row, key in itertools.product(whole.report["attacks"], ("average", "worst", "majority")):
        assert whole.report["robust"][key]["accuracy"] <= row[key]["accuracy"]
    other = purification_protocol(classifier, purifier, x, y, seed=1, **how)
    assert not np.array_equal(other.arrays["pgd.score"], whole.arrays["pgd.score"])


def test_votes_are_counted_and_shares_have_intervals() -> None:
    predicted = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 2, 1], [0, 0, 2]])  # (draws, images)
    found = accuracies(predicted, torch.tensor([0, 1, 1]))
    assert found["average"]["accuracy"] == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert found["worst"]["correct"] == 1
    assert found["majority"]["correct"] == 2  # the second has 2 of 4 votes, and no other class as many
    tied = accuracies(torch.tensor([[0], [1]]), torch.tensor([0]))
    assert tied["majority"]["correct"] == 0 and tied["average"]["accuracy"] == 0.5
    low, high = Accuracy(2.5, 10).interval
    assert low < Accuracy(3, 10).interval[0] and high > Accuracy(2, 10).interval[1] and low < 0.25 < high


def test_more_effort_costs_restarts_that_do_no_harm() -> None:
    classifier, x, y = bright_images(6, 0.62)
    purifier = Purifier(lambda z, sigma, stage: z, LADDER, sigma=0.2, steps=1)
    images = AttackContext.of(classifier, x, y, norm="Linf", eps=0.05)
    one, four = (PurificationContext(images, purifier, Effort(steps=1, draws=1, restarts=n)) for n in (1, 4))
    found = [ATTACKS["pgd"].run(each) for each in (one, four)]
    assert bool((one.robustness(found[1]) <= one.robustness(found[0])).all())


def test_bad_input() -> None:
    classifier, x, y = bright_images(2, 0.6)
    purifier = Purifier(lambda z, sigma, stage: z, LADDER, sigma=0.2, steps=1)
    for more, says in (
        ({"norm": "L0"}, "L0"),
        ({"eps": 0.0}, "a size over 0"),
        ({"y": torch.tensor([0, 2])}, "has 2 classes"),
        ({"x": x[:0], "y": y[:0]}, "give 1 image or more"),
        ({"x": x + 1}, "pixels"),
    ):
        with pytest.raises(InputError, match=says):
            purification_protocol(**{"classifier": classifier, "purifier": purifier, "x": x, "y": y, **more})
    with pytest.raises(InputError, match="every number must be 1 or more"):
        Effort(draws=0)
    blind = Classifier(lambda x: torch.stack([x.flatten(1).mean(1), 1 - x.flatten(1).mean(1)], 1).detach())
    with pytest.raises(InputError, match="gradient"):
        purification_protocol(blind, purifier, x, y, effort=EFFORT)
