"""Randomized smoothing: a guarantee for any classifier, with a denoiser in front of it or without.

``SmoothedClassifier`` states the guarantee, ``certify_image`` is the procedure; ``certify`` runs it on a batch of images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.attacks.batching import answer_batch
from sfumato.defences.compatibility import check_pixels
from sfumato.defences.smoothing.draws import ESTIMATION, SELECTION, Draws, Procedure, SmoothingNoise, run_procedures
from sfumato.defences.smoothing.radii import l2_radius, probability
from sfumato.defences.smoothing.sequential_test import FixedSample, RunningTest, SequentialTest
from sfumato.defences.smoothing.settings import SmoothingSettings

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

ABSTAIN = -1
PixelDenoiser = Callable[[Tensor, float], Tensor]
"""From noisy (B, C, H, W) in [0, 1] units and sigma to clean ones, such as ``Generator.denoise``."""


class SmoothedClassifier:
    """The smoothed classifier g of a base classifier f and, if there is one, a denoiser D:

        g(x) = argmax_c P(f(D(x + sigma e)) = c),      e ~ N(0, I).

    **Guarantee** (Cohen et al. 2019, arXiv 1902.02918, theorem 1). If the class c_A has a probability of at least p_A and
    every other class one of at most p_B < p_A, then g(x + d) = c_A for all perturbations d with

        ||d||_2 < R = sigma / 2 * (Phi^-1(p_A) - Phi^-1(p_B)),        with p_B = 1 - p_A:  R = sigma * Phi^-1(p_A).

    It needs no property of f or D, and x + d may leave [0, 1]. The certificate holds for the smoothed classifier, not
    for f. p_A is estimated from draws of the noise, so a certificate is wrong with a probability of at most alpha.

    Args:
        classifier: f; it sees the noise where there is no denoiser, and should have been trained with it.
        sigma: standard deviation of the noise, of pixels in [0, 1].
        denoise: D, one evaluation at noise level sigma (denoised smoothing: Carlini et al. 2022, arXiv 2206.10550).
    """

    def __init__(self, classifier: Classifier, sigma: float, denoise: PixelDenoiser | None = None) -> None:
        self.classifier, self.sigma, self.denoise = classifier, sigma, denoise

    def logits(self, noisy: Tensor) -> Tensor:
        """``f(D(noisy))``: (B, K), differentiable in ``noisy`` where D and f are."""
        clean = noisy if self.denoise is None else self.denoise(noisy, self.sigma)
        return self.classifier(clean, bounded=False)

    @torch.no_grad()
    def predict(self, x: Tensor, noise: SmoothingNoise, rows: Tensor, phases: Tensor, draws: Tensor) -> Tensor:
        """``f(D(x_i + sigma e))`` for i = ``rows[j]`` and e the ``draws[j]``-th of ``phases[j]``: (m,) int64, in one pass."""
        e = noise(rows, phases, draws)
        return self.logits(x[rows.to(x.device)] + self.sigma * e).argmax(1)


@dataclass(frozen=True)
class Certificate:
    """What is known of the smoothed classifier at one image.

    Label, radius, p_lower and every verdict True hold together with a probability of at least 1 - alpha.

    Attributes:
        label: the predicted class, or ``ABSTAIN`` (-1).
        radius: no perturbation of a smaller L2 norm changes the prediction; 0 where it abstains.
        n: draws that estimated p_A.
        p_lower: lower confidence bound of p_A; in sequential mode valid at every stopping time.
        selected: the most frequent class of the selection draws.
        hits: how many of the n draws were ``selected``.
        selection: draws that selected it.
        radii: that were asked for, rising.
        verdicts: for each radius, whether it is certified; None where n draws did not decide.
    """

    label: int
    radius: float
    n: int
    p_lower: float
    selected: int
    hits: int
    selection: int
    radii: tuple[float, ...]
    verdicts: tuple[bool | None, ...]


def certify(
    classifier: Classifier,
    x: Tensor,
    *,
    denoise: PixelDenoiser | None = None,
    ids: Tensor | Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> list[Certificate]:
    """Predict with the smoothed classifier, and certify each prediction.

    >>> certify(classifier, x, sigma=0.25, denoise=generator.denoise, radii=[0.25, 0.5])   # doctest: +SKIP

    Args:
        classifier, denoise: as in ``SmoothedClassifier``.
        x: (B, C, H, W) pixels in [0, 1].
        ids: numbers of the images, from 0 to 2^30 - 1 (default 0 ... B - 1); the noise of an image depends on its number
            and the seed alone, so neither the batch size nor the other images change a certificate.
        progress: called with (images done, B).
        settings: the fields of ``SmoothingSettings``; ``sigma`` must be given.

    Raises:
        InputError: impossible settings, among them an n too small to certify a radius that is asked for; pixels outside
            [0, 1]; images that the classifier or the denoiser does not take.
    """
    asked = SmoothingSettings(**settings)
    x = check_pixels(x)
    smoothed, noise = SmoothedClassifier(classifier, asked.sigma, denoise), SmoothingNoise(x, asked.seed, ids)
    batch = asked.batch_size or answer_batch(classifier, x, None)
    procedures = [certify_image(asked) for _ in range(len(x))]
    with classifier.ready():
        return run_procedures(procedures, partial(smoothed.predict, x, noise), batch, progress)


def certify_image(asked: SmoothingSettings) -> Procedure:
    """CERTIFY of Cohen et al. 2019 (section 3.2.2) for one image: yields which draws it wants next, is sent their labels.

    1. Select the most frequent class c_A of n0 draws; stop selecting as soon as no other class can catch up.
    2. Estimate p_A from fresh draws: "cohen" makes n and takes the exact lower bound of Clopper & Pearson (1934);
       "sequential" tests p_A against the level Phi(r / sigma) of each radius r as the draws come, and stops when every
       level is decided.
    3. If p_A > 1/2 is shown, the radius is sigma Phi^-1(p_lower); otherwise abstain.
    """
    counts: Counter[int] = Counter()
    while (left := asked.n0 - counts.total()) and (lead := _lead(counts)) <= left:
        labels = yield Draws(SELECTION, counts.total(), (left - lead) // 2 + 1)
        counts.update(labels.tolist())
    selected = min(label for label, count in counts.items() if count == max(counts.values()))

    levels = (0.5, *(probability(radius, asked.sigma) for radius in asked.wanted))
    sequential = asked.mode == "sequential"
    test = RunningTest(SequentialTest.of(levels, asked.alpha, asked.n)) if sequential else FixedSample(asked.n, levels)
    while not test.decided:
        labels = yield Draws(ESTIMATION, test.draws, asked.n - test.draws)
        test.update(labels == selected)

    shown = [radius for radius, verdict in zip((0.0, *asked.wanted), test.verdicts, strict=True) if verdict == 1]
    # A level that p_A was shown to exceed may lie above the bound that the last draws give.
    p_lower = max([test.lower_bound(asked.alpha), *(probability(radius, asked.sigma) for radius in shown)])
    radius = max([l2_radius(asked.sigma, p_lower), *shown])
    label = selected if test.verdicts[0] == 1 or p_lower > 0.5 else ABSTAIN
    decided = zip(asked.wanted, test.verdicts[1:], strict=True)
    verdicts = tuple(True if radius >= r else None if verdict == 0 else False for r, verdict in decided)
    drawn = {"n": test.draws, "hits": test.hits, "selection": counts.total()}
    return Certificate(
        label, radius, p_lower=p_lower, selected=selected, radii=asked.wanted, verdicts=verdicts, **drawn
    )


def _lead(counts: Counter[int]) -> int:
    (_, first), (_, second) = (counts.most_common(2) + [(ABSTAIN, 0)] * 2)[:2]
    return first - second
