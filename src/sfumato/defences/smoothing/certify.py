"""Randomised smoothing: any classifier as one that provably does not change its mind nearby, with a denoiser in front or without.

    g(x) = argmax_c P(f(D(x + sigma e)) = c),      e ~ N(0, I)

f is the classifier, D the denoiser at exactly the noise level sigma, in one step (Carlini et al. 2022, arXiv 2206.10550),
or nothing, for a classifier that was trained with noise (Cohen et al. 2019, arXiv 1902.02918). g's answer holds in a ball
whose radius follows from the probability of the commonest class (certificates.py), and that is estimated from draws.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sfumato.attacks.batching import answer_batch
from sfumato.core.errors import InputError
from sfumato.core.streams import Streams
from sfumato.defences.smoothing.certificates import (
    ABSTAIN,
    Certificate,
    check_reach,
    check_settings,
    clopper_pearson,
    default_radii,
    l2_radius,
    level,
    reach,
)
from sfumato.defences.smoothing.sequential_test import Bets, SequentialTest, lower_bound

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

Denoise = Callable[[Tensor, float], Tensor]  # noisy (B, C, H, W), sigma -> clean, in [0, 1] units: Generator.denoise

SELECTION, ESTIMATION, ATTACK, CHECK = range(4)  # what a draw is for: each has noise of its own
_PHASES = 4
_SALT = 0x5300  # keeps the noise apart from that of attacks with the same seed
_SHARE = 16  # draws of one image in a batch: what is drawn after its end, half of it on average, is lost


def certify(
    classifier: Classifier,
    x: Tensor,
    *,
    sigma: float,
    denoise: Denoise | None = None,
    radii: Sequence[float] | None = None,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    mode: str = "sequential",
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Certificate]:
    """What the smoothed classifier says of each image, and within which distance it says the same.

    "cohen" is algorithm CERTIFY of Cohen et al. 2019: the commonest of n0 draws is selected, and the exact lower bound of
    its probability (Clopper & Pearson 1934) comes from n fresh ones. "sequential" bets on the draws as they come
    (betting.py) and ends an image as soon as each of ``radii`` is certified or refuted, after some hundred draws as
    a rule; its lower bound is valid wherever that is. Both select with noise of its own, and stop selecting
    once no other class can catch up. Draws of several images fill a batch, and those that are decided leave it.

    Args:
        classifier: f; called on images with noise on them where there is no denoiser.
        x: (B, C, H, W) pixels in [0, 1].
        sigma: standard deviation of the noise, of pixels in [0, 1].
        denoise: D, such as ``Generator.denoise``.
        radii: L2 distances to decide about. None: half of sigma, sigma, one and a half, two, as far as n can reach.
        n0: draws to select the class from.
        n: draws to estimate from; the most of them in sequential mode.
        alpha: probability, for each image and over all radii, that its certificate is wrong.
        mode: "sequential" or "cohen".
        seed, ids: of the noise; that of image i depends on seed and ids[i] (default i; from 0 to 2^30 - 1) alone. So
            neither the batch size nor the other images change a result.
        batch_size: draws in a pass; by default the classifier's, on a CPU no more than suit its cache.
        progress: called with (images done, images in all).

    Returns:
        A Certificate for each image.

    Raises:
        InputError: settings that cannot be, among them an n with which no draws can certify a radius asked for; pixels
            outside [0, 1]; a classifier or denoiser that does not take such images.
    """
    if radii is None:
        check_settings(sigma, (), alpha, n0, n, mode)
        most = reach(sigma, alpha, n, mode)
        radii = [radius for radius in default_radii(sigma) if radius < most] or default_radii(sigma)[:1]
    wanted = check_settings(sigma, radii, alpha, n0, n, mode)
    check_reach(0.0, sigma, alpha, n, mode)
    x = check_pixels(x)
    noise = streams(seed, ids, x)
    levels = (0.5, *(level(radius, sigma) for radius in wanted))
    test = SequentialTest.of(levels, alpha, n) if mode == "sequential" else None
    batch = batch_size or answer_batch(classifier, x, None)
    found: dict[int, Certificate] = {}
    waiting = deque(_Poll(row, n0, _Count(n) if test is None else Bets(test)) for row in range(len(x)))
    active: list[_Poll] = []
    with classifier.ready():
        while waiting or active:
            while waiting and len(active) < max(1, batch // _SHARE):
                active.append(waiting.popleft())
            asked = _shares(active, batch)
            places = torch.tensor([each.row for each, count in zip(active, asked, strict=True) for _ in range(count)])
            phases = torch.tensor([each.phase for each, count in zip(active, asked, strict=True) for _ in range(count)])
            draws = torch.cat([torch.arange(each.drawn, each.drawn + c) for each, c in zip(active, asked, strict=True)])
            labels = votes(classifier, x, sigma, denoise, noise, places, phases, draws).cpu().numpy()
            for each, part in zip(active, np.split(labels, np.cumsum(asked)[:-1]), strict=True):
                each.take(part)
                if each.done:
                    found[each.row] = _certificate(each, sigma, wanted, alpha)
                    if progress is not None:
                        progress(len(found), len(x))
            active = [each for each in active if not each.done]
    return [found[row] for row in range(len(x))]


# -- draws ------------------------------------------------------------------------------------------------------------


def base(classifier: Classifier, noisy: Tensor, sigma: float, denoise: Denoise | None) -> Tensor:
    """``f(D(noisy))``: (B, K) logits, differentiable in ``noisy`` where the denoiser is."""
    return classifier(noisy if denoise is None else denoise(noisy, sigma), bounded=False)


@torch.no_grad()
def votes(
    classifier: Classifier,
    x: Tensor,
    sigma: float,
    denoise: Denoise | None,
    noise: Streams,
    rows: Tensor,
    phase: Tensor | int,
    draws: Tensor,
) -> Tensor:
    """What f says of image ``rows[i]`` under its ``draws[i]``-th noise of that phase, (m,) int64; all of them in one pass."""
    e = draw_noise(noise, x, rows, phase, draws)
    return base(classifier, x[rows.to(x.device)] + sigma * e, sigma, denoise).argmax(1)


def streams(seed: int, ids: Tensor | Sequence[int] | None, x: Tensor) -> Streams:
    """The noise of the images ``x`` (B, ...), a stream for each phase of each."""
    numbers = torch.arange(len(x)) if ids is None else torch.as_tensor(ids, dtype=torch.int64).cpu()
    if numbers.shape != x.shape[:1]:
        raise InputError(f"{len(x)} images and ids of shape {tuple(numbers.shape)}: give one id an image")
    phases = (_PHASES * numbers[:, None] + torch.arange(_PHASES)).flatten()  # (4 B,)
    return Streams(seed, phases.tolist(), salt=_SALT, device=x.device)


def draw_noise(noise: Streams, x: Tensor, rows: Tensor, phase: Tensor | int, draws: Tensor) -> Tensor:
    """(m, C, H, W) standard normal numbers: draw ``draws[i]`` of that phase, for image ``rows[i]``."""
    place = (_PHASES * rows + phase).to(x.device)
    return noise.at(place, draws.to(x.device)).normal(x.shape[1:]).to(x.dtype)


def check_pixels(x: Tensor) -> Tensor:
    """``x`` without its history; InputError for what is no batch of images in [0, 1]."""
    if not x.is_floating_point() or x.ndim < 2 or not len(x):
        raise InputError(f"images of shape {tuple(x.shape)} {x.dtype}: give a float tensor (B, C, H, W), B 1 or more")
    low, high = (float(value) for value in x.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise InputError(f"pixels run from {low:g} to {high:g}: give them between 0 and 1, without noise")
    return x.detach()


# -- one image --------------------------------------------------------------------------------------------------------


class _Count:
    """Cohen's estimation: n draws, whatever they say."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.draws = self.hits = 0

    def add(self, hits: np.ndarray) -> bool:
        self.draws, self.hits = self.draws + len(hits), self.hits + int(hits.sum())
        return self.draws == self.n


class _Poll:
    """One image on its way: first which class, then how surely.

    Attributes:
        row: of the image.
        phase: SELECTION or ESTIMATION.
        drawn: draws of that phase so far.
        done: whether all is decided.
    """

    def __init__(self, row: int, n0: int, estimate: _Count | Bets) -> None:
        self.row, self.n0, self.estimate = row, n0, estimate
        self.counts: Counter[int] = Counter()
        self.selected: int | None = None
        self.selection = 0
        self.done = False

    @property
    def phase(self) -> int:
        return SELECTION if self.selected is None else ESTIMATION

    @property
    def drawn(self) -> int:
        return self.selection if self.selected is None else self.estimate.draws

    def wants(self) -> int:
        """Draws that it can use at once: to select, as many as it takes at least until no other class can catch up."""
        if self.selected is None:
            return (self.n0 - self.selection - self._lead()) // 2 + 1
        most = self.estimate.n if isinstance(self.estimate, _Count) else int(self.estimate.test.looks[-1])
        return most - self.estimate.draws

    def take(self, labels: np.ndarray) -> None:
        """What the classifier said."""
        if self.selected is not None:
            self.done = self.estimate.add(labels == self.selected)
            return
        self.counts.update(labels.tolist())
        self.selection += len(labels)
        if self._lead() > self.n0 - self.selection or self.selection == self.n0:
            most = max(self.counts.values())
            self.selected = min(label for label, count in self.counts.items() if count == most)

    def _lead(self) -> int:
        (_, first), (_, second) = (self.counts.most_common(2) + [(ABSTAIN, 0)] * 2)[:2]
        return first - second


def _shares(active: Sequence[_Poll], batch: int) -> list[int]:
    """How many draws each image gets of a batch: as evenly as their needs allow, and one at least."""
    asked = [0] * len(active)
    room = max(batch, len(active))
    by_need = sorted(range(len(active)), key=lambda i: active[i].wants())
    for place, i in enumerate(by_need):
        asked[i] = min(active[i].wants(), room // (len(active) - place))
        room -= asked[i]
    return asked


def _certificate(poll: _Poll, sigma: float, radii: tuple[float, ...], alpha: float) -> Certificate:
    estimate, selected = poll.estimate, poll.selected
    assert selected is not None
    if isinstance(estimate, Bets):
        said = estimate.verdict
        p_lower = float(lower_bound(estimate.hits, estimate.draws, alpha))
        sure = said[0] == 1 or p_lower > 0.5
        shown = [r for r, verdict in zip((0.0, *radii), said, strict=True) if verdict == 1]
        p_lower = max([p_lower, *(level(r, sigma) for r in shown)])
        radius = max([l2_radius(sigma, p_lower), *shown])
        verdicts = tuple(
            True if radius >= r else None if verdict == 0 else False for r, verdict in zip(radii, said[1:], strict=True)
        )
    else:
        p_lower = clopper_pearson(estimate.hits, estimate.draws, alpha)
        sure, radius = p_lower > 0.5, l2_radius(sigma, p_lower)
        verdicts = tuple(radius >= r for r in radii)
    return Certificate(
        label=selected if sure else ABSTAIN,
        radius=radius,
        n=estimate.draws,
        p_lower=p_lower,
        selected=selected,
        hits=estimate.hits,
        selection=poll.selection,
        radii=radii,
        verdicts=verdicts,
    )
