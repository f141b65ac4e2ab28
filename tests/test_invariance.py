"""Changes that a person would not notice: the changes themselves, their accuracy, and the worst of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from sfumato.audit.invariance import DEGREES, Change, grids, measure, shift_of
from sfumato.classifiers import Classifier
from sfumato.core.errors import InputError

SIDE = 12


def blobs(count: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Spots well inside a black frame, class 1 brighter than class 0."""
    random = np.random.default_rng(seed)
    y = torch.arange(count) % 2
    x = torch.zeros(count, 1, SIDE, SIDE)
    for i in range(count):
        row, column = random.integers(3, 6, 2)
        x[i, 0, row : row + 4, column : column + 4] = 0.3 + 0.4 * float(y[i])
    return x, y


def total_light(x: Tensor) -> Tensor:
    """Class 1 where the image holds much light, wherever it is: (B, 2)."""
    light = x.sum((1, 2, 3))
    return torch.stack([torch.full_like(light, 8.0), light], 1)  # 16 pixels of 0.3 or 0.7: 4.8 or 11.2


def one_pixel(x: Tensor) -> Tensor:
    """Looks at a single pixel: (B, 2)."""
    pixel = x[:, 0, 3, 3]
    return torch.stack([torch.full_like(pixel, 0.5), pixel], 1)


def named(rows: list[dict[str, Any]], start: str) -> dict[str, Any]:
    return next(row for row in rows if row["name"].startswith(start))


def test_a_model_that_does_not_mind_shifts_keeps_its_accuracy():
    x, y = blobs()
    rows = measure(Classifier(total_light), x, y, trials=3)
    clean = named(rows, "unchanged")["accuracy"]
    assert clean == 1
    assert named(rows, "shift, random")["accuracy"] == named(rows, "shift, worst")["accuracy"] == clean
    assert all(point["accuracy"] == clean for point in named(rows, "shift, worst")["grid"])


def test_a_model_that_looks_at_one_pixel_fails():
    x = torch.zeros(30, 1, SIDE, SIDE)
    x[:, 0, 3, 3] = 1
    rows = measure(Classifier(one_pixel), x, torch.ones(30, dtype=torch.int64), trials=3)
    assert named(rows, "unchanged")["accuracy"] == 1
    worst = named(rows, "shift, worst")
    assert worst["accuracy"] == 0
    assert all(change and set(change) <= {"right", "down"} for change in worst["worst"])
    assert 0 < named(rows, "shift, random")["accuracy"] < 0.5  # only 1 of the 9 places of the grid keeps it
    # What is said to be the worst change is one.
    again = torch.cat([Change(**change)(x[i : i + 1]) for i, change in enumerate(worst["worst"])])
    assert bool((Classifier(one_pixel).predict(again) == 0).all())


def test_the_worst_is_never_better_than_any_single_one():
    x, y = blobs(60)
    flip = torch.from_numpy(np.random.default_rng(1).random(60) < 0.2)  # some labels are wrong from the start
    rows = measure(Classifier(total_light), x, torch.where(flip, 1 - y, y), trials=5, seed=3)
    everything = np.array(named(rows, "everything, worst")["right"])
    for kind in grids(SIDE):
        worst = named(rows, f"{kind}, worst")
        right = np.array(worst["right"])
        assert worst["accuracy"] <= min(point["accuracy"] for point in worst["grid"])
        assert worst["grid"][0]["change"] == {}
        assert worst["grid"][0]["accuracy"] == named(rows, "unchanged")["accuracy"]
        assert not (right & ~np.array(named(rows, f"{kind}, random")["right"])).any()
        assert not (everything & ~right).any()
    assert not (everything & ~np.array(named(rows, "everything, random")["right"])).any()
    # Brightness is what this model minds.
    assert named(rows, "brightness, worst")["accuracy"] <= named(rows, "unchanged")["accuracy"]


def test_light_is_what_a_model_of_light_minds():
    x, y = blobs()
    close = x.clamp(max=0.53)  # class 1 then holds 8.48, just above the threshold
    rows = measure(Classifier(total_light), close, y, trials=20)
    assert named(rows, "unchanged")["accuracy"] == 1
    assert named(rows, "brightness, worst")["accuracy"] == 0.5
    for i, change in enumerate(named(rows, "brightness, worst")["worst"]):
        assert change == {"light": 0.8 if y[i] else 1.25}
    assert named(rows, "everything, worst")["accuracy"] <= 0.5


def test_intervals_are_exact():
    x, y = blobs(37)
    y = torch.where(torch.arange(37) < 9, 1 - y, y)
    for row in measure(Classifier(total_light), x, y, trials=2):
        right = sum(row["right"])
        wanted = binomtest(right, 37).proportion_ci(0.95, "exact")
        assert row["accuracy"] == right / 37
        assert (row["low"], row["high"]) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
        assert row["low"] <= row["accuracy"] <= row["high"] and row["bounds"]


def test_results_belong_to_the_image_not_to_its_batch():
    x, y = blobs(20)
    both = measure(Classifier(one_pixel, batch_size=7), x, y, seed=5, trials=4)
    order = torch.arange(19, -1, -1)
    turned = measure(Classifier(one_pixel), x[order], y[order], seed=5, ids=order, trials=4)
    for row, other in zip(both, turned, strict=True):
        assert row["name"] == other["name"] and row["right"] == other["right"][::-1]
        assert (row["worst"] or []) == (other["worst"] or [])[::-1]
    assert measure(Classifier(one_pixel), x, y, seed=5, trials=4) == both
    assert measure(Classifier(one_pixel), x, y, seed=6, trials=4) != both


def test_changes_do_what_they_say():
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Change()(x), x)
    shifted = Change(right=torch.tensor([0.0, 2.0, 0.0]), down=torch.tensor([0.0, 0.0, -1.0]))(x)
    assert torch.equal(shifted[0], x[0])
    torch.testing.assert_close(shifted[1, :, :, 2:], x[1, :, :, :-2])
    torch.testing.assert_close(shifted[1, :, :, 0], x[1, :, :, 0])  # the edge repeats
    torch.testing.assert_close(shifted[2, :, :-1], x[2, :, 1:])
    torch.testing.assert_close(Change(light=0.8)(x), 0.8 * x)
    flatter = Change(contrast=0.75)(x)
    torch.testing.assert_close(flatter.mean((1, 2, 3)), x.mean((1, 2, 3)))
    torch.testing.assert_close(flatter.std((1, 2, 3)), 0.75 * x.std((1, 2, 3)))
    levels = Change(blur=torch.tensor([0, 1, 2]))(x)
    spread = (levels - x).flatten(1).norm(dim=1)
    assert spread[0] == 0 < spread[1] < spread[2]
    packed = Change(jpeg=torch.tensor([0, 1, 3]))(x)
    assert torch.equal(packed[0], x[0]) and not torch.equal(packed[1], x[1])
    turned = Change(degrees=90.0)(x)
    torch.testing.assert_close(turned, x.rot90(1, (2, 3)), atol=1e-4, rtol=0)
    assert Change(right=1, light=1.0, degrees=2.5).of(0) == {"right": 1.0, "degrees": 2.5}


def test_bounds_follow_the_size():
    assert (shift_of(28), shift_of(32), shift_of(224), shift_of(8)) == (2, 2, 16, 1)
    for side in (8, 28, 224):
        for _, changes in grids(side).values():
            assert changes[0] == Change() and len(set(changes)) == len(changes) > 2
    assert max(abs(float(change.degrees)) for change in grids(28)["rotation"][1]) == DEGREES


def test_progress_counts_every_change():
    calls: list[tuple[int, int]] = []
    x, y = blobs(4)
    measure(Classifier(total_light), x, y, trials=2, progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == list(range(1, calls[0][1] + 1))


def test_bad_input():
    x, y = blobs(4)
    classifier = Classifier(total_light)
    for images, labels, words in (
        (x[:0], y[:0], "1 or more"),
        (x, y[:3], "one label a sample"),
        (x * 255, y, "from 0 to 1"),
        (x[:, 0], y, "not shape"),
        (x, y + 1, "labels run from"),
    ):
        with pytest.raises(InputError, match=words):
            measure(classifier, images, labels)
    with pytest.raises(InputError, match="trials"):
        measure(classifier, x, y, trials=0)
