"""The denoiser: networks, and the preconditioning that gives each of them an easy task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.conditions import Condition, Kinds
from sfumato.core.errors import InputError, nearest
from sfumato.denoisers.networks import NETWORKS
from sfumato.ladder import Ladder, Level, coarse

SHARING = ("shared", "stage", "rung")


class Denoiser(nn.Module):
    """``x^ = D(z, s, stage, c)``: EDM preconditioning (Karras et al. 2022, equation 7), on P and on Q apart.

    On each subspace, with the data's root mean square ``d`` there and the share ``r`` of it that is in z,
    ``x^ = (r d^2 z + s d sqrt(r^2 d^2 + s^2) F) / (r^2 d^2 + s^2)``: what a linear denoiser would say, and the
    network's output F where unit size is right at every noise level. ``r = 1`` on P.

    Args:
        ladder: the chain.
        kinds: the parts of c.
        network: a name in NETWORKS, with its ``options``.
        sharing: ``shared``, one network for all; ``stage``, one for each; ``rung``, one for each rung of ``rungs``.
        rungs: the number of rungs in each stage, for a chain that is only ever walked on these.
        smooth_rms, sharp_rms: root mean square of ``P x_k`` and ``Q x_k`` of the data, in [-1, 1] space, by stage.
    """

    def __init__(
        self,
        ladder: Ladder,
        kinds: Kinds,
        network: str = "unet",
        options: Mapping[str, Any] | None = None,
        sharing: str = "shared",
        rungs: Sequence[int] = (),
        smooth_rms: Sequence[float] = (),
        sharp_rms: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if sharing not in SHARING:
            raise InputError(f"unknown sharing {sharing!r}: {nearest(sharing, SHARING)}")
        self.ladder, self.kinds, self.sharing = ladder, kinds, sharing
        self.rungs = ladder.levels(rungs) if rungs else []
        if sharing == "rung" and not self.rungs:
            raise InputError("sharing=rung needs rungs=, the number of rungs in each stage, such as rungs=4,4")
        self.smooth_rms = tuple(smooth_rms) or (0.5,) * ladder.stages
        self.sharp_rms = tuple(sharp_rms) or (0.25,) * ladder.stages
        build = NETWORKS.find(network)
        if sharing == "shared":
            served = [range(ladder.stages)]
        else:
            copies = [1] * ladder.stages if sharing == "stage" else [len(levels) - 1 for levels in self.rungs]
            served = [range(stage, stage + 1) for stage, count in enumerate(copies) for _ in range(count)]
        try:
            self.networks = nn.ModuleList(build(ladder, kinds, one, **dict(options or {})) for one in served)
        except InputError:
            raise
        except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise InputError(f"network {network!r} cannot be built: {error}") from None

    def forward(
        self, z: Tensor, sigma: Tensor, stage: int, c: Condition | None = None, detail: Tensor | None = None
    ) -> Tensor:
        """The clean image of the stage.

        Args:
            z: (B, C, h, w), float32, in [-1, 1] space.
            sigma: (B,), noise level.
            c: what the images are told to be; None for nothing.
            detail: (B,), r of each image; left out, the sampling path's ``r_k(s)``.
        """
        c = c or Condition()
        if detail is None:
            detail = self.ladder.detail(stage, sigma)
        share = 0.25 if stage else 1.0  # of all dimensions that P holds
        power = share * self.smooth_rms[stage] ** 2 + (1 - share) * (self.sharp_rms[stage] * detail) ** 2 + sigma**2
        seen = z / power.sqrt()[:, None, None, None]  # of unit size
        if self.kinds.image:
            seen = torch.cat([seen, self._image(c, stage)], dim=1)
        seen = seen.contiguous(memory_format=torch.channels_last)
        output = self._network(stage, sigma)(seen, sigma, detail, stage, c)
        output = output.to(torch.promote_types(z.dtype, torch.float32))  # from autocast's bf16; float64 stays
        skip_p, out_p = _precondition(self.smooth_rms[stage], torch.ones_like(sigma), sigma)
        if stage == 0:
            return skip_p * z + out_p * output
        skip_q, out_q = _precondition(self.sharp_rms[stage], detail, sigma)
        smooth, smooth_output = coarse(z), coarse(output)
        return skip_q * z + out_q * output + (skip_p - skip_q) * smooth + (out_p - out_q) * smooth_output

    def _image(self, c: Condition, stage: int) -> Tensor:
        """The image to be enlarged, at the stage's resolution and of about unit size."""
        if c.image is None or c.level is None:
            raise InputError("this model enlarges an image: give it one")
        return self.ladder.shrink(c.image, stage) / (1 + c.level**2).sqrt()[:, None, None, None]

    def _network(self, stage: int, sigma: Tensor) -> nn.Module:
        if self.sharing == "shared":
            return self.networks[0]
        if self.sharing == "stage":
            return self.networks[stage]
        level = float(sigma.flatten()[0])
        levels = self.rungs[stage][:-1]
        rung = min(range(len(levels)), key=lambda i: abs(levels[i] - level))
        if abs(levels[rung] - level) > 1e-4 * level or bool((sigma != sigma.flatten()[0]).any()):
            known = f"stage {stage}: {', '.join(f'{s:.4g}' for s in levels)}"
            raise InputError(
                f"noise level {level:.4g} is no rung of this model ({known}): a network for each rung knows these levels "
                "only, so sample with the model's own steps and euler, ancestral or mean"
            )
        return self.networks[sum(len(levels) - 1 for levels in self.rungs[:stage]) + rung]

    def rung(self, stage: int, index: int) -> tuple[Level, Level]:
        """The add_noise and the cleaner end of a rung."""
        return Level(stage, self.rungs[stage][index]), Level(stage, self.rungs[stage][index + 1])


def _precondition(rms: float, detail: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) on one subspace, each (B, 1, 1, 1)."""
    total = (detail * rms) ** 2 + sigma**2
    skip, out = detail * rms**2 / total, sigma * rms / total.sqrt()
    return skip[:, None, None, None], out[:, None, None, None]
