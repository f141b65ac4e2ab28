"""Diffusion purification: add noise to an image until it hides a small perturbation, then denoise it.

    D(x; e):  z = P x_k + r Q x_k + s e  at a level (k, s), and from there a sampler's way up  (DiffPure: Nie et al. 2022,
              arXiv 2205.07460, section 3.1; with one step it is the denoiser of Carlini et al. 2022, arXiv 2206.10550)

All noise is drawn before and given, so that a purification is a deterministic, differentiable function of the image. Its
gradient is exact: each evaluation of the network is computed again on the way back (``torch.utils.checkpoint``), so that
beyond the states themselves memory does not grow with the steps. Published numbers of this defence fell when it was
attacked so (Lee & Kim 2023, arXiv 2303.09051; Kassis et al. 2024, arXiv 2411.16598); ``purification_protocol`` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sfumato.classifiers import Classifier
from sfumato.conditions import Condition
from sfumato.core.errors import InputError
from sfumato.core.slices import slices
from sfumato.core.streams import mix_seed
from sfumato.defences.compatibility import check_pixels
from sfumato.generator import Generator, check_shape
from sfumato.ladder import Ladder, Level, flow_time
from sfumato.samplers import SAMPLERS, Denoise, Noise, ResumedNoise, share_steps

# Fashion-MNIST, Linf 0.1: see benchmarks/results/purification.md.
SIGMA = 0.3
STEPS = 2
SAMPLER = "euler"
LEAST_SIGMA = 0.5 / 255  # less noise than what rounding to 8 bits does
_SALT = 0x9000  # keeps the noise apart from that of attacks and of smoothing with the same seed

Noises = tuple[Tensor, ...]  # (B or 1, C, h, w) each, standard normal: all that one purification draws, in order


class Purifier:
    """Pixels (B, C, H, W) in [0, 1] and noise to purified pixels, in [0, 1] units but not clipped.

    (Clipping would cut the gradient of every pixel that is black or white, and a defence should not be measured by that.)

    >>> purifier = Purifier.of(Generator.from_pretrained("runs/fashion"))                # doctest: +SKIP
    >>> purifier(x, purifier.noise(range(len(x)), seed=1))                               # doctest: +SKIP

    Args:
        denoise: the expected clean image, as samplers call it.
        ladder: the chain.
        sigma: how much noise, as its standard deviation in pixels of [0, 1] at full resolution. What is over
            ``J_k / 2`` lies in a coarser stage, whose pooling shrinks the noise: its own level is ``2 sigma / 2^halvings``.
        steps: of the sampler, shared over the stages on the way up.
        sampler: a name in ``samplers.SAMPLERS``; "euler" with one step in the finest stage is one denoising.
        network: what ``denoise`` runs, so that ``purified`` can move and freeze it.

    Raises:
        InputError: a sigma, steps or a sampler that cannot be.
    """

    def __init__(
        self,
        denoise: Denoise,
        ladder: Ladder,
        *,
        sigma: float = SIGMA,
        steps: int = STEPS,
        sampler: str = SAMPLER,
        network: nn.Module | None = None,
    ) -> None:
        self.denoise, self.ladder, self.sigma, self.steps, self.sampler = denoise, ladder, sigma, steps, sampler
        self.network = network
        self.level = entry_level(ladder, sigma)
        self._method = SAMPLERS.find(sampler)
        self._shared = _shared_steps(ladder, self.level, steps)
        self.shapes = self._shapes()
        """(C, h, w) of each draw of noise."""

    @classmethod
    def of(
        cls, generator: Generator, *, sigma: float = SIGMA, steps: int | None = None, sampler: str = SAMPLER
    ) -> Purifier:
        """A trained generator as a purifier, unconditional; ``steps`` None: two, or one a stage where there are more.

        Raises:
            InputError: also a model that cannot do without labels, knows only its own rungs, or enlarges images.
        """
        generator.config.need_all_levels("purification")
        generator.need_unconditional("purification")

        def denoise(z: Tensor, sigma: float, stage: int) -> Tensor:
            level = torch.full((len(z),), sigma, dtype=z.dtype, device=z.device)
            with generator.autocast():
                return generator.denoiser(z, level, stage, Condition())

        ladder, network = generator.ladder, generator.denoiser
        if steps is None:
            steps = max(STEPS, ladder.stages - entry_level(ladder, sigma).stage)
        return cls(denoise, ladder, sigma=sigma, steps=steps, sampler=sampler, network=network)

    def __str__(self) -> str:
        return f"sigma {self.sigma:g}, {self.steps} step{'s' if self.steps > 1 else ''} of {self.sampler}"

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        weights = () if self.network is None else self.network.parameters()
        return next((weight.device for weight in weights), torch.device("cpu"))

    def noise(self, ids: Sequence[int], seed: int = 0, draw: int = 0) -> Noises:
        """What purification number ``draw`` of the images with these ids needs: each depends on (seed, draw, id) alone.

        One id gives noise that all images of a batch share.
        """
        source = Noise(mix_seed(mix_seed(seed, _SALT), draw), ids, self.device)
        return tuple(source(shape) for shape in self.shapes)

    def __call__(self, x: Tensor, noise: Noises) -> Tensor:
        """``D(x; noise)``: (B, C, H, W), on the device of ``x``, exactly differentiable in it; ``noise`` from ``noise()``."""
        check_shape(x, self.ladder)
        if tuple(tuple(e.shape[1:]) for e in noise) != self.shapes or any(len(e) not in (1, len(x)) for e in noise):
            raise InputError(f"the noise does not fit {len(x)} images and this purifier: draw it with noise()")
        given = iter(noise)
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            first = next(given).to(x)
            z = self.ladder.marginal(2 * x - 1, *self.level, first).to(self.device)
            steps = ResumedNoise(_Given(given, z), self.level, z)
            *_, last = self._method(self._checkpointed, self.ladder, steps, self._shared)
            return ((last.x_hat + 1) / 2).to(x.device)

    def one_step(self) -> Purifier:
        """The same noise, and the shortest way up: what an attacker may take in the place of a longer one."""
        steps = self.ladder.stages - self.level.stage
        return Purifier(self.denoise, self.ladder, sigma=self.sigma, steps=steps, network=self.network)

    def _checkpointed(self, z: Tensor, sigma: float, stage: int) -> Tensor:
        if not z.requires_grad:
            return self.denoise(z, sigma, stage)
        found = checkpoint(self.denoise, z, sigma, stage, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(found, Tensor)
        return found

    def _shapes(self) -> tuple[tuple[int, int, int], ...]:
        """What noise the sampler asks for: seen by letting it run on nothing."""
        probe = _Probe()
        z = probe(self.ladder.shape(self.level.stage))
        resumed = ResumedNoise(probe, self.level, z)
        rungs = list(self._method(lambda z, sigma, stage: z, self.ladder, resumed, self._shared))
        if rungs[0][:2] != self.level:
            raise InputError(
                f"sampler {self.sampler!r} adds no noise after its start, so it cannot go up from an image: "
                "choose euler, ancestral, heun or dpmpp-2m"
            )
        return tuple(probe.shapes)


class _Given(Noise):
    """Noise that was drawn before, for a sampler."""

    def __init__(self, draws: Iterator[Tensor], like: Tensor) -> None:
        self.draws, self.like = draws, like

    def __call__(self, shape: tuple[int, int, int]) -> Tensor:
        return next(self.draws).to(self.like)


class _Probe(Noise):
    """Noise of 0 that keeps the shapes it was asked for."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int, int]] = []

    def __call__(self, shape: tuple[int, int, int]) -> Tensor:
        self.shapes.append(shape)
        return torch.zeros(1, *shape)


def entry_level(ladder: Ladder, sigma: float) -> Level:
    """The rung at which an image carries noise of ``sigma``, in pixels of [0, 1] at full resolution.

    Pooling halves white noise, so the level t of stage k stands for ``t 2^(S-1-k)`` in [-1, 1] space; where two stages
    meet, the finer one counts.
    """
    most = ladder.jumps[0] * 2 ** (ladder.stages - 2)
    if not LEAST_SIGMA <= sigma <= most:
        raise InputError(
            f"sigma {sigma:g} cannot purify: give the noise's standard deviation, of pixels in [0, 1], from "
            f"{LEAST_SIGMA:.2g} to {most:g}, such as {SIGMA:g}"
        )
    level = 2 * sigma
    for stage in range(ladder.stages - 1, 0, -1):
        if level <= ladder.jumps[stage]:
            return Level(stage, level)
        level /= 2
    return Level(0, min(level, ladder.jumps[0]))


def _shared_steps(ladder: Ladder, level: Level, steps: int) -> tuple[int, ...]:
    """Steps for each stage such that ``steps`` are made from ``level`` up; those below it make none and are given as 1."""
    left = ladder.stages - level.stage
    if steps < left:
        raise InputError(f"{steps} steps are too few from this much noise: give {left} or more")
    upper = replace(ladder, stages=left, jumps=ladder.jumps[level.stage :], plain=ladder.plain[level.stage :])
    first, *rest = share_steps(upper, steps)
    sigmas = ladder.ends[level.stage], level.sigma, ladder.jumps[level.stage]
    low, here, high = flow_time(torch.tensor(sigmas, dtype=torch.float64))
    share = float((here - low) / (high - low))
    # Samplers keep the steps of the whole stage: so many that what is left of it holds just the first.
    return (*(1,) * level.stage, math.floor(first / share + 1e-9), *rest)


def answers(
    classifier: Classifier, purifier: Purifier, x: Tensor, noises: Sequence[Noises], through: str = "exact"
) -> Tensor:
    """(B, K) logits for images behind the purifier, differentiable in ``x``: for several draws of noise the logarithm of
    the mean probability, which keeps its digits where that is almost 1.

    ``through``: how a gradient gets back through the purifier. "exact", or "identity" as if it were not there (BPDA:
    Athalye et al. 2018, arXiv 1802.00420, section 4.1).
    """
    found = []
    for noise in noises:
        with torch.set_grad_enabled(torch.is_grad_enabled() and through == "exact"):
            clean = purifier(x, noise)
        if through == "identity":
            clean = x + (clean - x).detach()
        found.append(classifier(clean, bounded=False))
    if len(found) == 1:
        return found[0]
    return torch.stack([logits.log_softmax(1) for logits in found]).logsumexp(0) - math.log(len(found))


class Purified(nn.Module):
    """Pixels (B, C, H, W) in [0, 1] to logits (B, K), through a purifier and a classifier.

    Attributes:
        calls: made so far; in random mode each draws noise of its own.
    """

    def __init__(self, classifier: Classifier, purifier: Purifier, draws: int, seed: int, fixed: bool) -> None:
        super().__init__()
        if draws < 1:
            raise InputError(f"draws={draws}: a purified classifier needs 1 draw of noise or more")
        self.classifier, self.purifier, self.draws, self.seed, self.fixed = classifier, purifier, draws, seed, fixed
        self.parts = nn.ModuleList(part for part in (classifier.module, purifier.network) if part is not None)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, K) logits, differentiable in ``x``."""
        first = 0 if self.fixed else self.calls * self.draws
        self.calls += 1
        ids = [0] if self.fixed else range(len(x))
        noises = [self.purifier.noise(ids, self.seed, first + k) for k in range(self.draws)]
        return answers(self.classifier, self.purifier, x, noises)


def purified(
    classifier: Classifier, purifier: Purifier, *, draws: int = 1, seed: int = 0, fixed: bool = False
) -> Classifier:
    """A classifier behind a purifier as a ``Classifier``, with exact gradients, which attacks can attack like any other.

    Random (the default): every call draws new noise, for each image its own. Attacks of ``sfumato.attacks`` look once and
    believe what they see, so against it use ``purification_protocol``; or ``fixed``: the noise is drawn once, the same for
    all images, and the whole is a deterministic function that the attacker knows.

    Args:
        classifier: takes the generator's images.
        purifier: in front of it.
        draws: of noise in a call, whose probabilities are averaged: expectation over transformation (Athalye et al.
            2018, arXiv 1707.07397) for the attacker, a soft majority for the user.
        seed: of the noise.
        fixed: see above.

    Raises:
        InputError: 0 draws, a classifier that takes other images.
    """
    channels, *size = purifier.ladder.shape(purifier.ladder.stages - 1)
    module = Purified(classifier, purifier, draws, seed, fixed)
    labels = classifier.labels if classifier.named else ()
    seen = channels if channels < 4 else None
    return Classifier(module, labels=labels, size=(size[0], size[1]), channels=seen, batch_size=classifier.batch_size)


def purify(
    purifier: Purifier,
    x: Tensor,
    *,
    seed: int = 0,
    ids: Sequence[int] | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Purify images once.

    Args:
        purifier: see there.
        x: (B, C, H, W) pixels in [0, 1].
        seed, ids: of the noise; that of image i depends on seed and ids[i] (default i) alone.
        batch_size: images at once; it changes nothing.
        progress: called with (images done, images in all).

    Returns:
        (B, C, H, W) in [0, 1], clipped, without gradients.
    """
    x = check_pixels(x)
    numbers = list(range(len(x)) if ids is None else ids)
    if len(numbers) != len(x) or batch_size < 1:
        raise InputError(
            f"{len(x)} images, {len(numbers)} ids and batch_size={batch_size}: give one id an image and 1 or more at once"
        )
    with torch.no_grad():
        batches = slices(len(x), batch_size, progress)
        return torch.cat([purifier(x[some], purifier.noise(numbers[some], seed)).clamp(0, 1) for some in batches])
