"""The peer: ``diffusers``' own U-Net, training objective, average and solver, at the strongest setting we found.

UNet2DModel with class labels (dropped 10% of the time, as in every arm), v-prediction on the cosine schedule, AdamW
(fused), EMAModel with its warm-up, bf16 autocast and channels-last in training and in sampling; sampling with
DPMSolverMultistepScheduler (DPM-Solver++ 2M). Attention only at 8x8; parameters within 10% of sfumato's default at 32x32.

How ``Settings`` was chosen. Widths: of six shapes of that size, with a step as cheap as the cheapest within 5% (others
took up to 1.3 times as long); two groups a norm instead of eight cut a step from 10.9 to 8.9 ms an image on one thread.
Then short trainings of 75 s of one thread, one change each, Frechet distance of 500 images at 15 evaluations in the
features of a throwaway classifier: learning rate 1e-3 220, 2e-3 222, 2e-3 with min-SNR weights 240; 1e-3 with 2x2
patches 209 (``diffusers_patched``). One of 120 s, by the spacing of the time steps: trailing 165, linspace 166, Karras
185, leading 190. That is as long as the shortest comparison at most: at longer budgets close ones may change places.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.devices import autocast_type
from sfumato.data import ImageSet

SAMPLING = ("10", "15", "20")  # evaluations of the network
DROP = 0.1  # of the labels


@dataclass(frozen=True)
class Settings:
    """What the trials chose."""

    widths: tuple[int, ...] = (32, 64, 96)  # at 32x32, 16x16, 8x8
    patch: int = 1  # pixels a side that the network sees as one, with patch^2 channels
    layers: int = 1  # residual blocks a level on the way down; one more on the way up
    groups: int = 2  # of the group norm: few wide groups take the fast bf16 path of a CPU
    head_width: int = 32
    betas: Literal["linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    min_snr: float = 0.0  # gamma of the min-SNR weights; 0 is uniform weights on v
    batch: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.03  # share of the budget
    ema_power: float = 0.75
    spacing: Literal["trailing", "leading", "linspace", "karras"] = "trailing"  # of the time steps in sampling


SETTINGS = Settings()


def build(channels: int, size: tuple[int, int], classes: int, settings: Settings = SETTINGS) -> Any:
    """The UNet2DModel; label ``classes`` stands for "dropped"."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    outer, values = len(settings.widths) - 1, channels * settings.patch**2
    unet: Any = UNet2DModel(
        sample_size=(size[0] // settings.patch, size[1] // settings.patch),
        in_channels=values,
        out_channels=values,
        block_out_channels=settings.widths,
        layers_per_block=settings.layers,
        norm_num_groups=settings.groups,
        attention_head_dim=settings.head_width,
        down_block_types=("DownBlock2D",) * outer + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * outer,
        num_class_embeds=classes + 1,
    )
    return unet.to(memory_format=torch.channels_last)


def train(data: ImageSet, seconds: float, seed: int, out: Path, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Train for ``seconds`` and write the averaged network to ``out``; only the steps themselves are on the clock."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.training_utils import EMAModel

    torch.manual_seed(seed)
    classes = len(data.classes)
    unet = build(data.channels, data.size, classes, settings)
    schedule = DDPMScheduler(1000, beta_schedule=settings.betas, prediction_type="v_prediction")
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)  # (1000,)
    optimizer = torch.optim.AdamW(
        unet.parameters(), settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    average = EMAModel(
        unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=settings.ema_power, foreach=True
    )
    kind = autocast_type(torch.device("cpu"))
    labels = (
        torch.from_numpy(data.labels.copy()) if data.labels is not None else torch.zeros(len(data), dtype=torch.int64)
    )
    steps = 0
    spent, began = 0.0, time.perf_counter()
    while spent < seconds:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _rate(spent / seconds, settings.warmup)
        index = torch.randint(len(data), (settings.batch,))
        x = F.pixel_unshuffle(2 * data.pixels(index) - 1, settings.patch)  # (B, C * patch^2, H / patch, W / patch)
        x = x.contiguous(memory_format=torch.channels_last)
        label = torch.where(torch.rand(settings.batch) < DROP, classes, labels[index])
        t = torch.randint(1000, (settings.batch,))
        noise = torch.randn_like(x)
        z, v = schedule.add_noise(x, noise, t), schedule.get_velocity(x, noise, t)  # type: ignore[arg-type]
        with torch.autocast("cpu", kind or torch.bfloat16, enabled=kind is not None):
            output = unet(z, t, label).sample
        losses = F.mse_loss(output.float(), v, reduction="none").mean((1, 2, 3))
        if settings.min_snr:
            losses = losses * snr[t].clamp_max(settings.min_snr) / (snr[t] + 1)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(unet.parameters())
        steps += 1
        spent = time.perf_counter() - began
    average.copy_to(unet.parameters())
    unet.save_pretrained(out)
    parameters = sum(p.numel() for p in unet.parameters())
    return {"steps": steps, "images": steps * settings.batch, "parameters": parameters, "seconds": spent}


def _rate(fraction: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine down to 0, over the budget's fraction in [0, 1]."""
    if fraction < warmup:
        return (fraction + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup)))


@lru_cache(maxsize=1)
def _load(out: Path) -> Any:
    from diffusers.models.unets.unet_2d import UNet2DModel

    return UNet2DModel.from_pretrained(out, local_files_only=True).eval().to(memory_format=torch.channels_last)  # type: ignore[union-attr]


@torch.no_grad()
def sample(out: Path, n: int, setting: str, seed: int, settings: Settings = SETTINGS) -> Tensor:
    """(n, C, H, W) in [0, 1], each class in turn; ``setting`` is the number of network evaluations."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    unet = _load(out)
    classes = unet.config.num_class_embeds - 1
    solver = DPMSolverMultistepScheduler(
        1000,
        beta_schedule=settings.betas,
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
        use_karras_sigmas=settings.spacing == "karras",
        timestep_spacing="linspace" if settings.spacing == "karras" else settings.spacing,
    )
    solver.set_timesteps(int(setting))
    solver.set_begin_index(0)  # Karras spacing can give a time step twice, which the solver's own search trips over
    height, width = unet.config.sample_size
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn((n, unet.config.in_channels, height, width), generator=generator) * solver.init_noise_sigma
    z = z.contiguous(memory_format=torch.channels_last)
    label = torch.arange(n) % classes
    kind = autocast_type(torch.device("cpu"))
    for t in solver.timesteps:
        with torch.autocast("cpu", kind or torch.bfloat16, enabled=kind is not None):
            v = unet(solver.scale_model_input(z, t), t, label).sample
        z = solver.step(v.float(), t, z).prev_sample  # type: ignore[union-attr]
    return ((F.pixel_shuffle(z, settings.patch) + 1) / 2).clamp(0, 1)


def evaluations(out: Path, setting: str) -> int:
    """How often the network is called for an image."""
    return int(setting)
