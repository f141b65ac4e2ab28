"""Certificates against closed forms, noise, batches, pre-flight, the attack on the smoothed classifier, training with noise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, kstest, norm
from torch import Tensor, nn

from helpers.classifiers import classifier_steps
from helpers.generators import random_generator
from sfumato import classifiers
from sfumato.classifiers import Accuracy, Classifier
from sfumato.core.errors import InputError
from sfumato.data import load
from sfumato.defences import (
    ABSTAIN,
    Certificate,
    SmoothedClassifier,
    SmoothingSettings,
    certified_accuracy,
    certify,
    check_compatible,
    guaranteed_accuracy,
    l1_radius,
    l2_radius,
    linf_radius,
    smooth_adv,
)
from sfumato.defences.smoothing.draws import ESTIMATION, PHASES, SmoothingNoise
from sfumato.defences.smoothing.sequential_test import clopper_pearson
from sfumato.defences.smoothing.smooth_adv import soft_loss

SIGMA = 0.25
RADII = (0.125, 0.25, 0.375, 0.5)


def half_space(distances: Tensor) -> tuple[Classifier, Tensor, Tensor]:
    """Two classes on either side of a plane, images (B, 1, 4, 4) at these distances from it, and their classes."""
    normal = torch.randn(16, generator=torch.Generator().manual_seed(0))
    normal /= normal.norm()
    x = (0.5 + distances[:, None] * normal).view(-1, 1, 4, 4)
    layer = nn.Linear(16, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-4 * normal, 4 * normal]))
        layer.bias.copy_(torch.tensor([2.0, -2.0]) * normal.sum())
    return Classifier(nn.Sequential(nn.Flatten(), layer)), x, (distances > 0).long()


DISTANCES = torch.tensor([0.7, -0.6, 0.44, -0.43, 0.34, 0.30, -0.22, 0.19, -0.16, 0.09, -0.06, 0.7])


# -- certificates ------------------------------------------------------------------------------------------------------


def test_a_half_space_is_certified_up_to_its_plane():
    """The smoothed classifier of a half space is the half space itself, whatever sigma: the radius is the distance."""
    classifier, x, y = half_space(DISTANCES)
    found = certify(classifier, x, sigma=SIGMA, radii=RADII, n=20_000)
    for each, label, distance in zip(found, y.tolist(), DISTANCES.abs().tolist(), strict=True):
        assert each.label == each.selected == label
        assert 0 <= each.radius <= distance
        assert 0.5 <= each.p_lower <= norm.cdf(distance / SIGMA)
        assert each.radius == pytest.approx(SIGMA * norm.ppf(each.p_lower), rel=1e-6)
        for radius, verdict in zip(RADII, each.verdicts, strict=True):
            assert verdict == (radius < distance)  # each is 0.03 or more away from every radius
            assert not verdict or each.radius >= radius
        assert each.n < 20_000
    assert found[0] != found[-1]  # the same image under another number has other noise
    assert np.median([each.n for each in found]) < 2000


def test_cohens_procedure_comes_as_near_as_its_draws_allow():
    classifier, x, y = half_space(DISTANCES)
    found = certify(classifier, x, sigma=SIGMA, n=4000, mode="cohen")
    most = SmoothingSettings(SIGMA, n=4000, mode="cohen").reach
    assert most == pytest.approx(SIGMA * norm.ppf(0.001 ** (1 / 4000)))
    for each, label, distance in zip(found, y.tolist(), DISTANCES.abs().tolist(), strict=True):
        assert each.label == label and each.n == 4000
        assert max(0.0, min(0.9 * distance, most) - 0.03) <= each.radius <= min(distance, most)
        interval = binomtest(each.hits, 4000, 0.5).proportion_ci(1 - 2 * 0.001, "exact")
        assert each.p_lower == pytest.approx(interval.low, rel=1e-9)
        assert each.verdicts == tuple(each.radius >= radius for radius in each.radii)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (1, 10), (10, 10), (970, 1000), (1000, 1000)])
def test_clopper_pearson(hits: int, n: int):
    assert clopper_pearson(hits, n, 0.01) == pytest.approx(binomtest(hits, n).proportion_ci(0.98, "exact").low)


def test_radii():
    assert l2_radius(0.5, float(norm.cdf(1.5))) == pytest.approx(0.75)
    assert l2_radius(0.5, float(norm.cdf(1.5)), float(norm.cdf(-2.5))) == pytest.approx(0.25 * 4)
    assert l2_radius(0.5, 0.5) == l2_radius(0.5, 0.2) == l2_radius(0.5, 0.3, 0.3) == 0
    assert l2_radius(0.5, 0.4, 0.2) > 0 and l2_radius(1, 1.0) == float("inf")
    # The L2 ball of radius 0.5 holds the Linf ball's corners and the L1 ball's tips, and none farther out.
    corner, tip = torch.full((784,), linf_radius(0.5, 784)), torch.zeros(784)
    tip[3] = l1_radius(0.5)
    assert float(corner.norm()) == pytest.approx(0.5) and float(tip.norm()) == pytest.approx(0.5)


def test_it_abstains_where_two_classes_are_equally_probable():
    classifier = Classifier(lambda x: torch.stack([x[:, 0, 0, 0], x[:, 0, 0, 1]], 1), size=(4, 4), channels=1)
    x = torch.full((8, 1, 4, 4), 0.5)
    for how in ({"mode": "cohen", "n": 500}, {"radii": [0.1], "n": 3000}):
        found = certify(classifier, x, sigma=SIGMA, alpha=0.001, n0=20, **how)  # type: ignore[arg-type]
        assert all(each.label == ABSTAIN and each.radius == 0 and not any(each.verdicts) for each in found)
        assert {each.selected for each in found} == {0, 1}
    assert certified_accuracy(found, [each.selected for each in found], 0.0).correct == 0


def test_a_classifier_that_never_changes_its_mind_is_done_soon():
    classifier = Classifier(lambda x: torch.tensor([[0.0, 1.0, 0.0]]).repeat(len(x), 1))
    (found,) = certify(classifier, torch.rand(1, 3, 4, 4), sigma=SIGMA, radii=[0.5])
    assert found.label == 1 and found.verdicts == (True,) and found.radius >= 0.5
    assert found.hits == found.n == 351 and found.selection == 51  # after 51 of 100 no other class can catch up
    assert classifier.forwards < 351 + 51 + 128  # what else the last batch held


# -- draws -------------------------------------------------------------------------------------------------------------


def test_neither_batches_nor_other_images_change_anything():
    classifier, x, _ = half_space(DISTANCES[:8])
    for how in ({"radii": [0.25], "n": 1500}, {"mode": "cohen", "n": 300, "radii": [0.1]}):
        settings: dict[str, Any] = {"sigma": SIGMA, "seed": 5, "alpha": 0.01, **how}
        whole = certify(classifier, x, ids=range(100, 108), **settings)
        for batch_size in (7, 1000):
            assert certify(classifier, x, ids=range(100, 108), batch_size=batch_size, **settings) == whole
        backwards = certify(classifier, x.flip(0), ids=range(107, 99, -1), **settings)
        assert backwards[::-1] == whole
        assert certify(classifier, x[3:5], ids=[103, 104], **settings) == whole[3:5]
        assert certify(classifier, x, ids=range(100, 108), **{**settings, "seed": 6}) != whole


def test_noise_is_normal_and_everybodys_own():
    x = torch.zeros(6, 1, 8, 8)
    noise = SmoothingNoise(x)
    rows = torch.arange(6).repeat_interleave(40)
    drawn = [noise(rows, phase, torch.arange(40).repeat(6)).flatten(1) for phase in range(PHASES)]
    every = torch.cat(drawn).double()  # (960, 64)
    assert kstest(every.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(every) - torch.eye(len(every))
    assert float(correlation.abs().max()) < 6 / 8  # of 460,000 pairs over 64 numbers each
    assert float(correlation.square().mean()) == pytest.approx(1 / 63, rel=0.05)
    again = noise(torch.tensor([2]), ESTIMATION, torch.tensor([7])).flatten()
    assert torch.equal(again, drawn[1][2 * 40 + 7])


def test_the_class_is_selected_and_estimated_by_different_noise():
    """Of a coin: were a draw used for both, the class selected would have more than half of the draws."""
    seen: list[Tensor] = []

    def looked(noisy: Tensor, sigma: float) -> Tensor:
        assert sigma == SIGMA
        seen.append(noisy.flatten(1))
        return noisy

    classifier = Classifier(lambda x: torch.stack([x[:, 0, 0, 0], x[:, 0, 0, 1]], 1))
    x = torch.full((300, 1, 1, 4), 0.5)
    how: dict[str, Any] = {"mode": "cohen", "alpha": 0.4, "n0": 21, "n": 21}
    found = certify(classifier, x, sigma=SIGMA, denoise=looked, radii=(), batch_size=256, **how)
    hits = sum(each.hits for each in found)
    assert abs(hits - 300 * 21 / 2) < 4 * (300 * 21 / 4) ** 0.5  # with the same noise it would be 0.58 of all
    every = torch.cat(seen)
    assert len(every.unique(dim=0)) == len(every) == sum(each.n + each.selection for each in found)


def test_the_denoiser_comes_first_and_knows_sigma():
    generator = random_generator()
    classifier, _, _ = half_space(DISTANCES)
    tall = Classifier(nn.Sequential(nn.AvgPool2d(2), classifier.module or nn.Identity()), size=(8, 8), channels=1)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    found = certify(tall, x, sigma=0.4, denoise=generator.denoise, n0=10, n=60, mode="cohen", radii=())
    noise = SmoothingNoise(x)
    for row, each in enumerate(found):
        e = noise(torch.full((60,), row), ESTIMATION, torch.arange(60))
        clean = generator.denoise(x[row] + 0.4 * e, 0.4)
        assert each.hits == int((tall(clean, bounded=False).argmax(1) == each.selected).sum())
    assert not generator.denoise(x, 0.4).requires_grad


@pytest.mark.parametrize("mode", ["sequential", "cohen"])
@pytest.mark.parametrize("radius", [0.2, 0.5, 0.9])
def test_what_cannot_be_reached_is_known_before(mode: str, radius: float):
    """And what the sentence says would do is enough, and just so."""
    with pytest.raises(InputError, match=f"radius {radius:g} cannot be certified with sigma 0.25 and 12 ") as refused:
        SmoothingSettings(0.25, n=12, mode=mode, radii=[0.01, radius])
    n, sigma = re.findall(r"--samples (\d+)\) or a sigma of at least ([\d.]+)", str(refused.value))[0]
    SmoothingSettings(0.25, n=int(n), mode=mode, radii=[radius])
    SmoothingSettings(float(sigma), n=12, mode=mode, radii=[radius])
    with pytest.raises(InputError):
        SmoothingSettings(0.25, n=int(n) - 1, mode=mode, radii=[radius])
    with pytest.raises(InputError):
        SmoothingSettings(0.97 * float(sigma), n=12, mode=mode, radii=[radius])


def test_n_that_can_certify_nothing_is_refused():
    classifier, x, _ = half_space(DISTANCES)
    for mode in ("sequential", "cohen"):
        sentence = r"5 noisy copies: where all of them agree, that reaches 0 at alpha 0\.001; give 1"
        with pytest.raises(InputError, match=sentence):
            certify(classifier, x, sigma=SIGMA, n=5, mode=mode, radii=())
    assert classifier.forwards == 0
    (found,) = certify(classifier, x[:1], sigma=SIGMA, n=60)
    assert found.radii == (0.125, 0.25)  # of the usual ones what 60 can reach


BAD = [
    ({"sigma": 0.0}, "sigma 0 cannot smooth"),
    ({"sigma": float("nan")}, "sigma nan cannot smooth"),
    ({"alpha": 0.0}, "alpha 0 is no error"),
    ({"alpha": 0.5}, "alpha 0.5 is no error"),
    ({"n0": 0}, "both must be 1 or more"),
    ({"n": 0}, "both must be 1 or more"),
    ({"radii": [0.1, -0.2]}, "give L2 distances over 0"),
    ({"radii": [float("inf")]}, "give L2 distances over 0"),
    ({"radii": [3.0]}, "radius 3 cannot be certified"),
    ({"mode": "sequental"}, "did you mean 'sequential'"),
    ({"ids": [1, 2]}, "give one id an image"),
]


@pytest.mark.parametrize(("how", "sentence"), BAD)
def test_bad_settings(how: dict[str, Any], sentence: str):
    classifier, x, _ = half_space(DISTANCES)
    with pytest.raises(InputError, match=re.escape(sentence)):
        certify(classifier, x, **{"sigma": SIGMA, **how})
    assert classifier.forwards == 0


def test_bad_images():
    classifier, _, _ = half_space(DISTANCES)
    outside = [torch.full((1, 1, 4, 4), value) for value in (1.5, torch.nan)]
    for x in (torch.zeros(2, 1, 4, 4).long(), torch.zeros(0, 1, 4, 4), *outside):
        with pytest.raises(InputError, match="give"):
            certify(classifier, x, sigma=SIGMA)
        with pytest.raises(InputError, match="give"):
            smooth_adv(SmoothedClassifier(classifier, SIGMA), x, torch.zeros(len(x)), [0.1])


def test_noisy_pixels_may_lie_outside_but_must_be_numbers():
    classifier, x, _ = half_space(DISTANCES)
    with pytest.raises(InputError, match="between 0 and 1"):
        classifier(x + 1)
    torch.testing.assert_close(classifier(x, bounded=False), classifier(x))
    assert torch.isfinite(classifier(x + 1, bounded=False)).all()
    for bad in (torch.nan, torch.inf):
        with pytest.raises(InputError):
            classifier(x + bad, bounded=False)


def certificate(label: int, radius: float) -> Certificate:
    return Certificate(label, radius, 100, 0.9, max(label, 0), 99, 51, (), ())


def test_certified_accuracy_keeps_those_that_abstain():
    found = [certificate(1, 0.3), certificate(1, 0.1), certificate(0, 0.9), certificate(ABSTAIN, 0.0)]
    shares = [certified_accuracy(found, [1, 1, 1, 1], radius).value for radius in (0.0, 0.1, 0.2, 0.3, 0.31)]
    assert shares == [0.5, 0.5, 0.25, 0.25, 0.0]


def test_guaranteed_takes_off_what_may_be_wrong():
    for count, alpha in ((500, 0.001), (500, 0.05), (20, 0.001)):
        wrong = round((0.9 - guaranteed_accuracy(Accuracy(int(0.9 * count), count), alpha)) * count)
        assert binom.sf(wrong, count, alpha) <= 0.001 < binom.sf(wrong - 1, count, alpha)
    assert guaranteed_accuracy(Accuracy(1, 500), 0.05) == 0


# -- the attack --------------------------------------------------------------------------------------------------------


def test_the_gradient_goes_through_the_denoiser_exactly():
    """Against central differences along random directions, the noise fixed."""
    generator = random_generator()
    layer, stream = nn.Linear(64, 3), torch.Generator().manual_seed(3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 64, generator=stream))
    classifier = Classifier(nn.Sequential(nn.Flatten(), layer))
    x, e = torch.rand(2, 1, 8, 8, generator=stream), torch.randn(2, 5, 1, 8, 8, generator=stream)
    y = torch.tensor([0, 2])

    smoothed = SmoothedClassifier(classifier, 0.3, generator.denoise)

    def loss(at: Tensor) -> Tensor:
        return soft_loss(smoothed, at, y, e)

    logits = [classifier(generator.denoise(x[i] + 0.3 * e[i], 0.3), bounded=False) for i in (0, 1)]
    probability = torch.stack([each.softmax(1)[:, y[i]].mean() for i, each in enumerate(logits)])
    torch.testing.assert_close(loss(x), torch.logit(1 - probability), rtol=1e-3, atol=1e-4)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    for _ in range(4):
        direction = torch.randn(x.shape, generator=stream)
        direction /= direction.flatten(1).norm(dim=1).view(2, 1, 1, 1)
        with torch.no_grad():
            rise = (loss(x + 0.02 * direction) - loss(x - 0.02 * direction)) / 0.04
        along = (slope * direction).flatten(1).sum(1)
        torch.testing.assert_close(along, rise, rtol=0.02, atol=0.01 * float(slope.norm()))


def test_the_attack_crosses_the_plane_where_it_is_and_not_before():
    classifier, x, y = half_space(DISTANCES[:11])
    smoothed, radii = SmoothedClassifier(classifier, SIGMA), (0.1, 0.2, 0.3, 0.4, 0.5)
    found = smooth_adv(smoothed, x, y, radii, steps=4)
    distance = DISTANCES[:11].abs()
    assert bool((found.fooled_at > distance).all())
    reachable = distance < 0.42
    assert bool((found.fooled_at <= distance + 0.16)[reachable].all())
    assert bool((found.fooled_at[:2] == torch.inf).all())
    size = (found.x_adv - x).flatten(1).norm(dim=1)
    assert bool((size <= found.fooled_at.clamp_max(0.5) + 1e-5).all())
    assert float(found.x_adv.min()) >= 0 and float(found.x_adv.max()) <= 1
    alone = smooth_adv(smoothed, x[4:6], y[4:6], radii, steps=4, ids=[4, 5], batch_size=100)
    assert torch.equal(alone.fooled_at, found.fooled_at[4:6])
    wrong = smooth_adv(smoothed, x[:2], 1 - y[:2], [0.1])
    assert wrong.fooled_at.tolist() == [0, 0] and torch.equal(wrong.x_adv, x[:2])


def test_the_attack_says_when_no_gradient_flows():
    classifier, x, y = half_space(DISTANCES[:2])
    with pytest.raises(InputError, match="no gradient flows"):
        smooth_adv(SmoothedClassifier(classifier, SIGMA, lambda noisy, _: noisy.detach()), x, y, [0.1])
    bad: list[tuple[list[float], Any]] = [([], {}), ([-1.0], {}), ([0.1], {"steps": 0}), ([0.1], {"check": 10})]
    for radii, how in bad:
        with pytest.raises(InputError, match="give"):
            smooth_adv(SmoothedClassifier(classifier, SIGMA), x, y, radii, **how)


def test_a_generator_must_fit_the_classifier():
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    names = ("sandal", "sneaker", "shirt")
    for channels in (1, 3):  # for colour, grey is repeated
        classifier = Classifier(network, size=(28, 28), channels=channels, labels=names)
        check_compatible(classifier, random_generator(size=(28, 28)))
    check_compatible(Classifier(network, labels=("other", "names")), random_generator(classes=()))
    check_compatible(Classifier(network), random_generator())
    for size, channels, labels, sentence in (
        ((28, 28), 1, names, "the classifier takes 28x28 pixels, the generator makes 32x32: "),
        ((32, 32), 3, names, "the classifier takes colour images, the generator makes colour with transparency ones"),
        ((32, 32), 4, ("sandal", "boot"), "the classifier knows a class 'boot', the generator does not"),
    ):
        classifier = Classifier(network, size=size, channels=channels, labels=labels)
        with pytest.raises(InputError, match=sentence):
            check_compatible(classifier, random_generator(size=(32, 32), channels=4))


def test_training_with_noise(tmp_path: Path):
    """It is better at noisy digits than the same training without, and a folder goes on with its own noise only."""
    test = load("digits", split="test")
    x, y = test.pixels(slice(0, 300)), torch.from_numpy(test.labels)[:300]  # type: ignore[arg-type]
    noisy = x + 0.4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    right = []
    for noise in (0.0, 0.4):
        out = tmp_path / f"{noise}"
        trained = classifiers.train_classifier("digits", out, epochs=3, noise=noise, device="cpu")
        right.append(float((trained(noisy, bounded=False).argmax(1) == y).float().mean()))
        assert classifiers.read_description(out)["training"].get("noise", 0.0) == noise
    assert right[1] > right[0] + 0.1
    with pytest.raises(InputError, match=r"noise was 0\.4, now 0\.3"):
        classifier_steps(tmp_path / "0.4", epochs=5, noise=0.3)
    with pytest.raises(InputError, match=r"noise was 0\.4, now None"):
        classifier_steps(tmp_path / "0.4", epochs=5)
    for noise in (-0.1, float("nan")):
        with pytest.raises(InputError, match="give a standard deviation of 0 or more"):
            classifier_steps(tmp_path / "new", epochs=5, noise=noise)
