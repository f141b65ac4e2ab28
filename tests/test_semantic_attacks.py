"""Attacks that no norm bounds (rotations and shifts, common corruptions), and one perturbation for all images."""

from __future__ import annotations

import io
import itertools
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sfumato.attacks.corruptions import CORRUPTIONS, corrupt, corruptions
from sfumato.attacks.losses import margin
from sfumato.attacks.norms import norm_of, project
from sfumato.attacks.spatial import rigid, spatial
from sfumato.attacks.universal import universal, universal_perturbation
from sfumato.attacks.verify import fooled
from sfumato.classifiers import Classifier
from sfumato.core.errors import InputError
from sfumato.core.streams import Streams


def pictures(count: int = 4, channels: int = 3, size: int = 24, seed: int = 0) -> Tensor:
    """Smooth shapes in colour with hard edges, in [0, 1]: what blur, pixels and JPEG can hurt."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / size
    images = np.empty((count, channels, size, size), np.float32)
    for i in range(count):
        for c in range(channels):
            wave = 0.5 + 0.3 * np.sin(random.uniform(4, 12) * rows + random.uniform(4, 12) * columns)
            disc = (rows - random.uniform(0.3, 0.7)) ** 2 + (columns - random.uniform(0.3, 0.7)) ** 2 < 0.05
            images[i, c] = np.where(disc, random.uniform(), wave)
    return torch.from_numpy(images)


def quadrants(x: Tensor) -> Tensor:
    """Logits (B, 4): the light in each quarter of the image; no position is forgiven."""
    return 20 * F.adaptive_avg_pool2d(x.mean(1, keepdim=True), 2).flatten(1)


@cache
def trained() -> tuple[Classifier, Tensor, Tensor, Tensor, Tensor]:
    """A small net trained on scikit-learn's digits, and 400 images of its training set and 300 others with labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.from_numpy(images[order] / 16).float().reshape(-1, 1, 8, 8)
    y = torch.from_numpy(labels[order]).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = nn.Conv2d(1, 16, 3, padding=1)
        net = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(15):
            for rows in torch.randperm(1200).split(64):
                optimizer.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
    classifier = Classifier(net, mean=0.0, std=1.0)
    assert float((classifier.predict(x[1200:]) == y[1200:]).double().mean()) > 0.95
    return classifier, x[:400], y[:400], x[1200:1500], y[1200:1500]


# -- rotations and shifts -------------------------------------------------------------------------------------------------


def test_nothing_moves_at_zero_bounds():
    x = pictures()
    y = Classifier(quadrants).predict(x)
    for search in ("grid", "random"):
        assert torch.equal(spatial(Classifier(quadrants), x, y, degrees=0, shift=0, search=search, trials=3), x)
    zero = torch.zeros(len(x))
    torch.testing.assert_close(rigid(x, zero, zero, zero), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(24, 24), (12, 20)])
def test_whole_pixel_shifts_and_quarter_turns_are_exact(shape: tuple[int, int]):
    x = pictures()[..., : shape[0], : shape[1]]
    zero = torch.zeros(len(x))
    shifted = rigid(x, zero, zero + 3, zero - 2)
    torch.testing.assert_close(shifted[..., :-2, 3:], x[..., 2:, :-3], rtol=0, atol=1e-5)
    assert float(shifted[..., :3].abs().max()) < 1e-5 and float(shifted[..., -2:, :].abs().max()) < 1e-5
    half = rigid(x, zero + 180, zero, zero)
    torch.testing.assert_close(half, x.flip(2, 3), rtol=0, atol=1e-4)
    if shape[0] == shape[1]:
        torch.testing.assert_close(rigid(x, zero + 90, zero, zero), x.rot90(1, (2, 3)), rtol=0, atol=1e-4)
        # Turned first, then shifted.
        both = rigid(x, zero + 90, zero + 2, zero + 1)
        torch.testing.assert_close(both[..., 1:, 2:], x.rot90(1, (2, 3))[..., :-1, :-2], rtol=0, atol=1e-4)


def test_rotation_agrees_with_scipy():
    from scipy.ndimage import rotate

    x = F.avg_pool2d(pictures(1, 1, 40), 3, 1, 1)  # smooth: the two place their samples a hair apart
    ours = rigid(x, torch.tensor([17.0]), torch.zeros(1), torch.zeros(1))[0, 0].numpy()
    theirs = rotate(x[0, 0].numpy(), 17.0, reshape=False, order=1)
    np.testing.assert_allclose(ours[10:-10, 10:-10], theirs[10:-10, 10:-10], atol=1e-3)


@pytest.mark.parametrize("search", ["grid", "random"])
def test_a_known_shift_is_found(search: str):
    """A bright square just left of the middle line: 3 pixels to the right put it into the next quarter."""
    x = torch.zeros(2, 1, 16, 16)
    x[..., 2:5, 4:7] = 1.0
    classifier = Classifier(quadrants)
    y = classifier.predict(x)
    too_short = spatial(classifier, x, y, degrees=0, shift=2, search=search, trials=200)
    assert not fooled(classifier, too_short, y).any()
    found = spatial(classifier, x, y, degrees=0, shift=4, search=search, trials=200)
    assert bool(fooled(classifier, found, y).all())
    assert found.min() >= 0 and found.max() <= 1
    assert float(found[..., 8:].sum()) > float(found[..., :8].sum())  # it went to the right
    goal = torch.full((2,), 2)  # downwards instead
    too_short = spatial(classifier, x, goal, targeted=True, degrees=0, shift=2, search=search)
    assert not fooled(classifier, too_short, goal, True).any()
    down = spatial(classifier, x, goal, targeted=True, degrees=0, shift=7, search=search, trials=200)
    assert bool(fooled(classifier, down, goal, True).all())


def test_a_known_rotation_is_found():
    x = torch.zeros(1, 1, 16, 16)
    x[..., 1:4, 4:7] = 1.0  # clockwise by 30 degrees it crosses the middle
    classifier = Classifier(quadrants)
    y = classifier.predict(x)
    assert not fooled(classifier, spatial(classifier, x, y, degrees=5, shift=0), y).any()
    assert bool(fooled(classifier, spatial(classifier, x, y, degrees=45, shift=0), y).all())


def test_the_worst_candidate_is_returned():
    classifier, _, _, x, y = trained()
    x, y = x[:40], y[:40]
    worst = margin(classifier.logits(spatial(classifier, x, y, degrees=10, shift=1, angles=3, shifts=3)), y)
    zero = torch.zeros(len(x))
    for angle, right, down in itertools.product((-10, 0, 10), (-1, 0, 1), (-1, 0, 1)):
        moved = rigid(x, zero + angle, zero + right, zero + down)
        assert bool((margin(classifier.logits(moved), y) <= worst + 1e-3).all())
    assert bool((worst > margin(classifier.logits(x), y)).any())


def test_random_search_is_each_samples_own():
    classifier, _, _, x, y = trained()
    x, y = x[:8], y[:8]
    keywords = {"degrees": 20.0, "shift": 1.0, "search": "random", "trials": 5}
    whole = spatial(classifier, x, y, seed=3, **keywords)
    rows = torch.tensor([6, 1, 4])
    part = spatial(classifier, x[rows], y[rows], seed=3, ids=rows, **keywords)
    torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-5)
    assert not torch.equal(whole, spatial(classifier, x, y, seed=4, **keywords))


def test_spatial_refuses_what_it_cannot_do():
    classifier, x = Classifier(quadrants), pictures(1)
    y = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(InputError, match="needs images"):
        spatial(classifier, x.flatten(1), y)
    with pytest.raises(InputError, match="unknown search 'girds': did you mean 'grid'"):
        spatial(classifier, x, y, search="girds")
    with pytest.raises(InputError, match="unknown outside"):
        spatial(classifier, x, y, outside="nothing")
    with pytest.raises(InputError, match="must not be negative"):
        spatial(classifier, x, y, degrees=-1)


# -- corruptions ----------------------------------------------------------------------------------------------------------

EACH_CORRUPTION = pytest.mark.parametrize("name", list(CORRUPTIONS))


@EACH_CORRUPTION
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_severity_takes_images_farther_away(name: str, channels: int, size: int):
    x = pictures(6, channels, size)
    before = x.clone()
    images = [corrupt(x, name, severity) for severity in range(1, 6)]
    assert torch.equal(x, before)
    for image in images:
        assert image.shape == x.shape and image.dtype == x.dtype
        assert image.min() >= 0 and image.max() <= 1
    distances = [float(norm_of(image - x, "L2").mean()) for image in images]
    assert distances[0] > 0.01
    assert all(far > near for near, far in itertools.pairwise(distances)), distances


@EACH_CORRUPTION
def test_corruptions_belong_to_seed_and_sample(name: str):
    x = pictures(5)
    whole = corrupt(x, name, 3, seed=1)
    assert torch.equal(whole, corrupt(x, name, 3, seed=1))
    rows = torch.tensor([3, 0])
    torch.testing.assert_close(corrupt(x[rows], name, 3, seed=1, ids=rows), whole[rows], rtol=0, atol=1e-5)
    same = torch.equal(whole, corrupt(x, name, 3, seed=2))
    assert same == (name in {"gaussian-blur", "brightness", "contrast", "pixelate", "jpeg"})


def test_noise_has_the_published_size():
    grey = torch.full((8, 1, 64, 64), 0.5)
    assert float((corrupt(grey, "gaussian-noise", 4) - 0.5).std()) == pytest.approx(0.09, rel=0.02)
    shot = corrupt(grey, "shot-noise", 5)
    assert float(shot.mean()) == pytest.approx(0.5, abs=0.003)
    assert float(shot.var()) == pytest.approx(0.5 / 50, rel=0.03)  # Poisson: the variance is the mean
    assert float((shot * 50 - (shot * 50).round()).abs().max()) < 1e-4  # whole photons
    impulse = corrupt(grey, "impulse-noise", 5)
    assert float((impulse == 0).double().mean()) == pytest.approx(0.035, rel=0.1)
    assert float((impulse == 1).double().mean()) == pytest.approx(0.035, rel=0.1)


def test_blurs_keep_flat_images_and_agree_with_scipy():
    from scipy.ndimage import gaussian_filter

    flat = torch.full((2, 3, 16, 16), 0.3)
    for name in ("gaussian-blur", "motion-blur", "pixelate", "contrast"):
        torch.testing.assert_close(corrupt(flat, name, 5), flat, rtol=0, atol=1e-5)
    x = pictures(1, 1)
    theirs = gaussian_filter(x[0, 0].numpy(), 1.0, mode="nearest")
    np.testing.assert_allclose(corrupt(x, "gaussian-blur", 5)[0, 0].numpy(), theirs, atol=1e-4)


def test_motion_smears_along_one_direction():
    x = torch.zeros(1, 1, 33, 33)
    x[..., 16, 16] = 1.0
    smear = corrupt(x, "motion-blur", 5)[0, 0].double().numpy()
    rows, columns = np.mgrid[:33, :33]
    covariance = np.cov(np.c_[rows.ravel(), columns.ravel()].T, aweights=smear.ravel())
    across, along = np.linalg.eigvalsh(covariance)
    assert smear.sum() == pytest.approx(1, abs=0.02) and along > 4 * across


def test_brightness_keeps_the_colour():
    from colorsys import rgb_to_hsv

    x = 0.2 + 0.4 * pictures(1, 3, 6)
    brighter = corrupt(x, "brightness", 3)
    for before, after in zip(x[0].flatten(1).T.tolist(), brighter[0].flatten(1).T.tolist(), strict=True):
        hue, saturation, value = rgb_to_hsv(*before)
        assert rgb_to_hsv(*after) == pytest.approx((hue, saturation, value + 0.15), abs=1e-4)
    black = corrupt(torch.zeros(1, 3, 4, 4), "brightness", 1)
    torch.testing.assert_close(black, torch.full((1, 3, 4, 4), 0.05))


def test_jpeg_is_what_pillow_makes():
    x = pictures(1, 3, 32)
    file = io.BytesIO()
    Image.fromarray((x[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(file, "JPEG", quality=40)
    expected = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(corrupt(x, "jpeg", 5)[0], expected)


def test_the_worst_corruption_is_returned():
    classifier, _, _, x, y = trained()
    x, y = x[:60], y[:60]
    worst = corruptions(classifier, x, y, severity=5, seed=2)
    value = margin(classifier.logits(worst), y)
    each = {name: margin(classifier.logits(corrupt(x, name, 5, seed=2)), y) for name in CORRUPTIONS}
    each["none"] = margin(classifier.logits(x), y)
    torch.testing.assert_close(value, torch.stack(list(each.values())).amax(0), rtol=0, atol=1e-3)
    assert float(fooled(classifier, worst, y).double().mean()) > 2 * float(fooled(classifier, x, y).double().mean())
    only = corruptions(classifier, x, y, severity=5, seed=2, names=["contrast"])
    assert bool((margin(classifier.logits(only), y) <= value + 1e-3).all())


def test_corruptions_refuse_what_they_cannot_do():
    x = pictures(1)
    with pytest.raises(InputError, match="unknown corruption 'blurr'"):
        corrupt(x, "blurr", 1)
    with pytest.raises(InputError, match="severity 6"):
        corrupt(x, "contrast", 6)
    with pytest.raises(InputError, match="grey or colour"):
        corrupt(x[:, :2], "contrast", 1)


# -- one perturbation for all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.25), ("L2", 1.6)])
def test_a_universal_perturbation_fools_far_more_than_noise(norm: str, eps: float):
    """Found on some images, added to others: it carries over, and noise of the same norm does next to nothing."""
    classifier, x, y, new_x, new_y = trained()
    delta = universal_perturbation(classifier, x, y, norm=norm, eps=eps, epochs=8)
    assert delta.shape == x.shape[1:]
    assert float(norm_of(delta[None], norm)) <= eps * (1 + 1e-5)
    noise = Streams(0, range(5)).normal(x.shape[1:])
    noise = eps * noise.sign() if norm == "Linf" else project(1e3 * noise, norm, eps)

    def rate(shift: Tensor) -> float:
        return float(fooled(classifier, (new_x + shift).clamp(0, 1), new_y).double().mean())

    assert rate(delta) > 0.4
    assert rate(delta) > 2 * max(rate(each) for each in noise)


def test_universal_images_stay_in_ball_and_box():
    classifier, x, y, _, _ = trained()
    x_adv = universal(classifier, x[:64], y[:64], norm="L2", eps=1.0, epochs=3)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert float(norm_of(x_adv - x[:64], "L2").max()) <= 1 + 1e-5
    again = universal(classifier, x[:64], y[:64], norm="L2", eps=1.0, epochs=3)
    assert torch.equal(x_adv, again)
    goal = torch.full((64,), 3)
    aimed = universal(classifier, x[:64], goal, norm="Linf", eps=0.3, targeted=True, epochs=6)
    assert float(fooled(classifier, aimed, goal, True).double().mean()) > 0.5


def test_the_order_of_the_images_does_not_matter_beyond_rounding():
    classifier, x, y, _, _ = trained()
    x, y = x[:48], y[:48]
    order = torch.from_numpy(np.random.default_rng(1).permutation(48))
    one = universal_perturbation(classifier, x, y, norm="L2", eps=1.0, epochs=2)
    other = universal_perturbation(classifier, x[order], y[order], norm="L2", eps=1.0, epochs=2, ids=order)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_universal_refuses_what_it_cannot_do():
    classifier, x, y, _, _ = trained()
    with pytest.raises(InputError, match="give at least one"):
        universal_perturbation(classifier, x[:0], y[:0])
    with pytest.raises(InputError, match="one eps above 0"):
        universal_perturbation(classifier, x, y, eps=0.0)
    with pytest.raises(InputError, match="unknown norm 'L1' for universal"):
        universal_perturbation(classifier, x, y, norm="L1")
