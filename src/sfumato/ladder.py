"""The chain: down it adds noise and shrinks the image, up it denoises and raises the resolution.

The lecture writes ``z_T = x``, ``z_{t-1} = Noisy(z_t)``, ``z_0 ~ N(0, I)``. Here the rungs lie in S stages, k = 0 the
coarsest and S-1 the finest. Stage k sees the image ``x_k = A^(S-1-k) x``, where A averages blocks of 2x2 pixels. With
``Up`` (each pixel repeated 2x2), ``P = Up A`` keeps what a smaller image can hold and ``Q = I - P`` is the detail that
shrinking destroys. Inside stage k, at the noise level s,

    z(s) = P x_k + r_k(s) Q x_k + s e,      e ~ N(0, I),      r_k(s) = clamp((J_k - s) / (J_k - plain_k), 0, 1),

from ``s = J_k``, where the detail is pure noise and can be dropped without loss, down to ``end_k = J_{k+1} / 2``, where
the next finer stage begins (pooling halves the standard deviation of white noise), and to 0 in the finest stage.
The family holds Pyramidal Flow (Jin et al. 2024, arXiv 2410.05954; ``plain = end``), subspace diffusion
(``plain -> J``) and, with one stage, EDM (Karras et al. 2022, arXiv 2206.00364).

Images in this file are in [-1, 1], tensors are (B, C, H, W) at the resolution of their stage, and this file knows no
network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.errors import InputError
from sfumato.core.registry import Registry

Weights = tuple[Tensor, Tensor]  # on P and on Q, each (B,)

S_MAX = 40.0  # J_0: the coarsest image hides in this much noise
SMALLEST_SIGMA = 0.02  # loss and likelihood weights are taken no closer to the clean image than this


def pool(x: Tensor) -> Tensor:
    """A: the mean of each block of 2x2 pixels, (B, C, H, W) -> (B, C, H/2, W/2)."""
    return F.avg_pool2d(x, 2)


def repeat(x: Tensor) -> Tensor:
    """Up: each pixel becomes a block of 2x2, (B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def coarse(x: Tensor) -> Tensor:
    """P x: the part of x that survives pooling, same shape as x. The detail is ``Q x = x - P x``."""
    return repeat(pool(x))


def flow_time(sigma: Tensor) -> Tensor:
    """``n = s / (1 + s)``: the share of noise in ``z / (1 + s)``, from 0 (clean) to 1 (noise)."""
    return sigma / (1 + sigma)


def from_flow_time(n: Tensor) -> Tensor:
    """The noise level s whose flow time is n."""
    return n / (1 - n)


def _per_image(value: Tensor | float, like: Tensor) -> Tensor:
    """A number, or one number an image (B,), shaped to multiply (B, C, H, W)."""
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return value.reshape(-1, 1, 1, 1) if value.ndim else value


def _as_level(sigma: Tensor | float) -> Tensor:
    """A tensor as it is; a number in its full precision."""
    return sigma if isinstance(sigma, Tensor) else torch.tensor(sigma, dtype=torch.float64)


class Level(NamedTuple):
    """A stage, and a noise level within it."""

    stage: int
    sigma: float


@dataclass(frozen=True)
class Ladder:
    """The stages, and every formula of the chain.

    Args:
        size: (height, width) of the finest images; both divisible by ``2 ** (stages - 1)``, and by 2 at least.
        channels: 1 grey, 3 colour, 4 colour with transparency.
        stages: S >= 1.
        jumps: ``J_k``, the noise level at which stage k is entered, falling. Left out, the stages share the flow time
            ``n = s / (1 + s)`` equally, as in PixelFlow.
        plain: ``plain_k``, the level at and below which the detail of stage k is whole; ``end_k <= plain_k < J_k``
            (the value for stage 0, which has no detail to lose, is ignored). Left out, ``plain_k = end_k``.
    """

    size: tuple[int, int] = (32, 32)
    channels: int = 1
    stages: int = 3
    jumps: tuple[float, ...] = ()
    plain: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        height, width = self.size
        if self.stages < 1:
            raise InputError(f"stages is {self.stages}: a ladder needs one stage or more")
        unit = 2 ** max(self.stages - 1, 1)
        if height < 1 or width < 1 or height % unit or width % unit:
            raise InputError(
                f"size {height}x{width} cannot be halved {self.stages - 1} times: choose a size that {unit} divides, "
                "or fewer stages"
            )
        if self.channels not in (1, 3, 4):
            raise InputError(f"images with {self.channels} channels: 1 (grey), 3 (colour) and 4 (RGBA) are possible")
        # e_k = (k + 1) / S of the flow time is left at the end of stage k, so end_k = (1 - e_k) / e_k.
        shared = (S_MAX, *(2.0 * (self.stages - k) / k for k in range(1, self.stages)))
        jumps = tuple(float(j) for j in self.jumps) or shared
        object.__setattr__(self, "jumps", jumps)
        if (
            len(jumps) != self.stages
            or not all(float("inf") > hi > lo / 2 >= 0 for hi, lo in zip(jumps, (*jumps[1:], 0.0), strict=True))
            or 0.0 in jumps
        ):
            raise InputError(f"jumps {jumps} do not fit {self.stages} stages: one a stage, each over half of the next")
        plain = tuple(float(p) for p in self.plain) or self.ends
        object.__setattr__(self, "plain", plain)
        between = zip(self.ends[1:], plain[1:], jumps[1:], strict=False)
        if len(plain) != len(jumps) or not all(end <= level < jump for end, level, jump in between):
            raise InputError(f"plain levels {plain} do not lie between the ends {self.ends} and the jumps {jumps}")

    # -- where things are -------------------------------------------------------------------------------------------

    @property
    def ends(self) -> tuple[float, ...]:
        """``end_k = J_{k+1} / 2``, and 0 for the finest stage."""
        return (*(j / 2 for j in self.jumps[1:]), 0.0)

    def shape(self, stage: int) -> tuple[int, int, int]:
        """(C, H, W) of the images of a stage."""
        shrink = 2 ** (self.stages - 1 - stage)
        return self.channels, self.size[0] // shrink, self.size[1] // shrink

    def levels(self, steps: Sequence[int]) -> list[list[float]]:
        """For each stage, ``steps[k] + 1`` noise levels from ``J_k`` to ``end_k``, equally far apart in flow time."""
        if len(steps) != self.stages or min(steps) < 1:
            raise InputError(
                f"steps {tuple(steps)} do not fit {self.stages} stages: give one number, 1 or more, a stage"
            )
        levels: list[list[float]] = []
        for count, jump, end in zip(steps, self.jumps, self.ends, strict=True):
            ends = flow_time(torch.tensor([jump, end], dtype=torch.float64))
            inner = from_flow_time(torch.linspace(ends[0], ends[1], count + 1, dtype=torch.float64))[1:-1]
            levels.append([jump, *map(float, inner), end])
        return levels

    def detail(self, stage: int, sigma: Tensor | float) -> Tensor:
        """``r_k(s)``: how much of the detail is left, in [0, 1]; shape of sigma."""
        sigma = _as_level(sigma)
        if stage == 0:
            return torch.ones_like(sigma)
        jump, plain = self.jumps[stage], self.plain[stage]
        return ((jump - sigma) / (jump - plain)).clamp(0, 1)

    def detail_slope(self, stage: int, sigma: Tensor | float) -> Tensor:
        """``r_k'(s)``; at the kink ``s = plain_k`` the slope on the noisy side."""
        sigma = _as_level(sigma)
        if stage == 0:
            return torch.zeros_like(sigma)
        jump, plain = self.jumps[stage], self.plain[stage]
        return torch.where(sigma >= plain, -1.0 / (jump - plain), 0.0).to(sigma)

    # -- down: z_{t-1} = Noisy(z_t) ---------------------------------------------------------------------------------

    def shrink(self, x: Tensor, stage: int) -> Tensor:
        """``x_k = A^(S-1-k) x``: the clean image of a stage from the clean image (B, C, H, W) of the finest."""
        for _ in range(self.stages - 1 - stage):
            x = pool(x)
        return x

    def blend(self, x: Tensor, stage: int, detail: Tensor | float) -> Tensor:
        """``P x + r Q x`` for an image of this stage; ``detail`` is r, a number or one an image (B,)."""
        if stage == 0:
            return x
        smooth = coarse(x)
        return smooth + _per_image(detail, x) * (x - smooth)

    def marginal(self, x: Tensor, stage: int, sigma: Tensor | float, noise: Tensor) -> Tensor:
        """``z(s) = P x_k + r Q x_k + s e`` straight from the clean finest image.

        Args:
            x: (B, C, H, W), clean, at the finest resolution.
            sigma: one level, or one an image (B,), within the stage.
            noise: e, standard normal, (B, C, h, w) at the stage's resolution.
        """
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        return self.blend(self.shrink(x, stage), stage, self.detail(stage, sigma)) + _per_image(sigma, x) * noise

    def down(self, z: Tensor, here: Level, there: Level, generator: torch.Generator | None = None) -> Tensor:
        """The lecture's ``Noisy``: one rung (or several) down the Markov chain, from ``here`` to ``there``.

        Within a stage, s -> s' > s: ``z' = P z + (r'/r) Q z + sqrt(s'^2 - s^2) P e + sqrt(s'^2 - (r'/r)^2 s^2) Q e``;
        at a boundary ``z = A z``, whose level is ``J_k / 2``.
        """
        stage, sigma = here
        lowest = sigma if there.stage == stage else self.ends[there.stage]
        if there.stage > stage or not lowest <= there.sigma <= self.jumps[there.stage] or sigma > self.jumps[stage]:
            raise ValueError(f"{there} is not further down than {here}, or outside its stage: down() only adds noise")
        while stage > there.stage:
            z = pool(self._add_noise(z, stage, sigma, self.jumps[stage], generator))
            stage, sigma = stage - 1, self.jumps[stage] / 2
        return self._add_noise(z, stage, sigma, there.sigma, generator)

    def _add_noise(self, z: Tensor, stage: int, low: float, high: float, generator: torch.Generator | None) -> Tensor:
        if high == low:
            return z
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
        return self.add_noise(z, stage, low, high, noise)

    def add_noise(self, z: Tensor, stage: int, low: float, high: float, noise: Tensor) -> Tensor:
        """``down`` within a stage, with the standard normal noise that is given, of the shape of z."""
        if stage == 0:
            return z + (high**2 - low**2) ** 0.5 * noise
        ratio = float(self.detail(stage, high) / self.detail(stage, low))
        smooth, smooth_noise = coarse(z), coarse(noise)
        kept = smooth + ratio * (z - smooth)
        added_p = (high**2 - low**2) ** 0.5
        added_q = (high**2 - (ratio * low) ** 2) ** 0.5
        return kept + added_p * smooth_noise + added_q * (noise - smooth_noise)

    # -- up: z_t from z_{t-1} ---------------------------------------------------------------------------------------

    def jump(self, z: Tensor, stage: int, noise: Tensor) -> Tensor:
        """Up one resolution into ``stage``, exactly: ``Up(z) + J_k (e - P e)``.

        Args:
            z: (B, C, h, w) at the end of stage - 1.
            noise: e, standard normal, (B, C, 2h, 2w); only its detail is used.
        """
        return repeat(z) + self.jumps[stage] * (noise - coarse(noise))

    def slope(self, z: Tensor, x_hat: Tensor, stage: int, sigma: float, r_slope: float | None = None) -> Tensor:
        """The probability-flow ODE: ``dz/ds = r'(s) Q x^ + (z - P x^ - r Q x^) / s``."""
        if stage == 0:
            return (z - x_hat) / sigma
        smooth = coarse(x_hat)
        sharp = x_hat - smooth
        r = float(self.detail(stage, sigma))
        r_slope = float(self.detail_slope(stage, sigma)) if r_slope is None else r_slope
        return (z - smooth) / sigma + (r_slope - r / sigma) * sharp

    def ddim_step(self, z: Tensor, x_hat: Tensor, stage: int, high: float, low: float) -> Tensor:
        """The ODE solved exactly from ``high`` to ``low`` for an x^ that stays as it is (one DDIM step).

        ``z' = B(low) x^ + (low / high) (z - B(high) x^)`` with ``B(s) = P + r(s) Q``.
        """
        ratio = low / high
        if stage == 0:
            return ratio * z + (1 - ratio) * x_hat
        smooth = coarse(x_hat)
        weight = float(self.detail(stage, low)) - ratio * float(self.detail(stage, high))
        return ratio * z + (1 - ratio) * smooth + weight * (x_hat - smooth)

    def posterior(self, z: Tensor, x_hat: Tensor, stage: int, high: float, low: float) -> tuple[Tensor, float, float]:
        """``q(z(low) | z(high), x^)`` of the Markov kernel: its mean, and its standard deviations on P and on Q."""
        variance_p = high**2 - low**2
        if stage == 0:
            mean = (variance_p * x_hat + low**2 * z) / high**2
            return mean, low * variance_p**0.5 / high, 0.0
        r_high, r_low = float(self.detail(stage, high)), float(self.detail(stage, low))
        ratio = r_high / r_low
        variance_q = high**2 - (ratio * low) ** 2
        z_smooth, x_smooth = coarse(z), coarse(x_hat)
        mean_p = (variance_p * x_smooth + low**2 * z_smooth) / high**2
        mean_q = (r_low * variance_q * (x_hat - x_smooth) + ratio * low**2 * (z - z_smooth)) / high**2
        return mean_p + mean_q, low * variance_p**0.5 / high, low * variance_q**0.5 / high

    # -- w_t: what an error of x^ costs -----------------------------------------------------------------------------

    def weights(self, name: str, stage: int, sigma: Tensor) -> Weights:
        """The lecture's ``w_t`` as weights on ``||P (x^ - x_k)||^2`` and ``||Q (x^ - x_k)||^2``, each (B,).

        They belong to noise levels drawn uniformly in flow time; another distribution shifts the emphasis on purpose.
        """
        return WEIGHTS.find(name)(self, stage, sigma.clamp_min(SMALLEST_SIGMA))

    def likelihood_weights(self, stage: int, sigma: Tensor) -> Weights:
        """``-log p(x) <= sum_k integral ds [w_P ||P d||^2 + w_Q ||Q d||^2] + prior + reconstruction`` (nats).

        ``w = -1/2 d(SNR)/ds`` with ``SNR_P = 1/s^2`` and ``SNR_Q = r^2/s^2``. The jumps cost nothing.
        """
        r, slope = self.detail(stage, sigma), self.detail_slope(stage, sigma)
        return sigma**-3, r**2 * sigma**-3 - r * slope * sigma**-2


WEIGHTS: Registry[Callable[[Ladder, int, Tensor], Weights]] = Registry("loss weight")
DATA_STD = 0.5  # of pixels in [-1, 1], as in EDM
MIN_SNR = 5.0  # gamma of Hang et al. 2023


@WEIGHTS.add("velocity")
def velocity_weights(ladder: Ladder, stage: int, sigma: Tensor) -> Weights:
    """The error of the velocity ``d(z / (1 + s)) / dn`` of flow matching (Lipman et al. 2022; Jin et al. 2024)."""
    on_q = ladder.detail_slope(stage, sigma) - ladder.detail(stage, sigma) / sigma
    return ((1 + sigma) / sigma) ** 2, ((1 + sigma) * on_q) ** 2


@WEIGHTS.add("edm")
def edm_weights(ladder: Ladder, stage: int, sigma: Tensor) -> Weights:
    """Unit loss of the raw network output at every level (Karras et al. 2022, table 1)."""
    r = ladder.detail(stage, sigma)
    scale = (sigma * DATA_STD) ** 2
    return (sigma**2 + DATA_STD**2) / scale, (sigma**2 + (r * DATA_STD) ** 2) / scale


@WEIGHTS.add("elbo")
def elbo_weights(ladder: Ladder, stage: int, sigma: Tensor) -> Weights:
    """The likelihood bound within a stage (stages count equally a pixel): its weights in ds, times ``ds/dn = (1 + s)^2`` (Kingma et al. 2021)."""
    on_p, on_q = ladder.likelihood_weights(stage, sigma)
    return on_p * (1 + sigma) ** 2, on_q * (1 + sigma) ** 2


@WEIGHTS.add("min-snr")
def min_snr_weights(ladder: Ladder, stage: int, sigma: Tensor) -> Weights:
    """``min(SNR, 5)`` (Hang et al. 2023, arXiv 2303.09556)."""
    r = ladder.detail(stage, sigma)
    return (sigma**-2).clamp_max(MIN_SNR), (r / sigma).square().clamp_max(MIN_SNR)


@WEIGHTS.add("uniform")
def uniform_weights(ladder: Ladder, stage: int, sigma: Tensor) -> Weights:
    """Every rung's clean image counts the same."""
    return torch.ones_like(sigma), torch.ones_like(sigma)
