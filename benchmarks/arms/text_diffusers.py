"""The peer for texts: ``diffusers``' U-Net with cross-attention, its objective, average and solver.

UNet2DConditionModel on the same token states as sfumato's models, with the pooled text as its class embedding (as in
Imagen); v-prediction on the cosine schedule, AdamW (fused), EMAModel with its warm-up, texts dropped 10% of the time, bf16
autocast and channels-last in training and in sampling; classifier-free guidance in one doubled batch and
DPMSolverMultistepScheduler (DPM-Solver++ 2M). Attention at the innermost level only, as in sfumato's networks;
parameters within 10% of sfumato's default at 32x32.

How ``Settings`` was chosen: by the trials of ``diffusers_unet``, where 2x2 patches, two groups a norm and a rate of 1e-3
came out best at short budgets; none were made with texts. Of the shapes of that size, a step of (64, 80) in patches of
2x2 took 9.2 ms an image on one thread, of (32, 64, 80) in single pixels 14.0, of (64, 80) in single pixels 28.8.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.conditions import Condition
from sfumato.conditions.sources import source_of
from sfumato.core.devices import autocast_type
from sfumato.data import ImageSet

SAMPLING = ("15:3", "15:5")
DROP = 0.1  # of the texts


@dataclass(frozen=True)
class Settings:
    """The network and its training."""

    widths: tuple[int, ...] = (64, 80)
    patch: int = 2  # pixels a side that the network sees as one, with patch^2 channels
    layers: int = 1  # residual blocks a level on the way down; one more on the way up
    groups: int = 2  # of the group norm: few wide groups take the fast bf16 path of a CPU
    heads: int = 2
    batch: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.03  # share of the budget
    ema_power: float = 0.75


SETTINGS = Settings()


def build(data: ImageSet, width: int, settings: Settings = SETTINGS) -> Any:
    """The UNet2DConditionModel for texts whose states have this width."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    outer, values = len(settings.widths) - 1, data.channels * settings.patch**2
    unet: Any = UNet2DConditionModel(
        sample_size=(data.size[0] // settings.patch, data.size[1] // settings.patch),  # type: ignore[arg-type]
        in_channels=values,
        out_channels=values,
        block_out_channels=settings.widths,
        layers_per_block=settings.layers,
        norm_num_groups=settings.groups,
        attention_head_dim=settings.heads,  # in this class the number of heads, whatever its name
        down_block_types=("DownBlock2D",) * outer + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * outer,
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=width,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=width,
    )
    return unet.to(memory_format=torch.channels_last)


def told(unet: Any, z: Tensor, t: Tensor, c: Condition) -> Tensor:
    """The network's output, float32; a token of zeros is always there, the only one where the text is dropped."""
    assert c.tokens is not None and c.mask is not None and c.vector is not None
    here = torch.ones(len(z), dtype=torch.bool) if c.present is None else c.present
    mask = F.pad(c.mask & here[:, None], (1, 0), value=True)
    kind = autocast_type(torch.device("cpu"))
    with torch.autocast("cpu", kind or torch.bfloat16, enabled=kind is not None):
        found = unet(
            z, t, F.pad(c.tokens, (0, 0, 1, 0)), class_labels=c.vector * here[:, None] * c.vector.shape[1] ** 0.5,
            encoder_attention_mask=mask,
        ).sample  # fmt: skip
    return found.float()


def train(data: ImageSet, seconds: float, seed: int, out: Path, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Train for ``seconds`` and write the averaged network to ``out``; only the steps themselves are on the clock."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.training_utils import EMAModel

    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    source = source_of(data, "minilm")
    unet = build(data, source.kinds.tokens, settings)
    schedule = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    optimizer = torch.optim.AdamW(
        unet.parameters(), settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    average = EMAModel(
        unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=settings.ema_power, foreach=True
    )
    steps = 0
    spent, began = 0.0, time.perf_counter()
    while spent < seconds:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _rate(spent / seconds, settings.warmup)
        index = torch.randint(len(data), (settings.batch,)).numpy()
        images = 2 * data.pixels(index) - 1
        c = source.batch(index, images, generator).drop(DROP, settings.batch, generator)
        x = F.pixel_unshuffle(images, settings.patch).contiguous(memory_format=torch.channels_last)
        t = torch.randint(1000, (settings.batch,))
        noise = torch.randn_like(x)
        z, v = schedule.add_noise(x, noise, t), schedule.get_velocity(x, noise, t)  # type: ignore[arg-type]
        F.mse_loss(told(unet, z, t, c), v).backward()
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
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet: Any = UNet2DConditionModel.from_pretrained(out, local_files_only=True)
    return unet.eval().to(memory_format=torch.channels_last)


@torch.no_grad()
def sample(out: Path, c: Condition, count: int, setting: str, seed: int, settings: Settings = SETTINGS) -> Tensor:
    """(count, C, H, W) in [0, 1], told c; ``setting`` is ``STEPS:GUIDANCE``."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    steps, scale = setting.split(":")
    unet = _load(out)
    solver = DPMSolverMultistepScheduler(
        1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
    )
    solver.set_timesteps(int(steps))
    height, width = unet.config.sample_size
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn((count, unet.config.in_channels, height, width), generator=generator) * solver.init_noise_sigma
    z = z.contiguous(memory_format=torch.channels_last)
    both = Condition(
        vector=torch.cat([c.vector] * 2), tokens=torch.cat([c.tokens] * 2), mask=torch.cat([c.mask] * 2),  # type: ignore[list-item]
        present=torch.arange(2 * count) < count,
    )  # fmt: skip
    for t in solver.timesteps:
        with_text, without = told(unet, torch.cat([solver.scale_model_input(z, t)] * 2), t, both).chunk(2)
        z = solver.step(torch.lerp(without, with_text, float(scale)), t, z).prev_sample  # type: ignore[union-attr]
    return ((F.pixel_shuffle(z, settings.patch) + 1) / 2).clamp(0, 1)
