"""The peer: ``diffusers``' own U-Nets, training objective, average and solver, at the strongest setting we found.

UNet2DModel with class labels, or UNet2DConditionModel on the same token states as sfumato's models with the pooled text
as its class embedding (as in Imagen); labels and texts are dropped 10% of the time, as in every arm. v-prediction on the
cosine schedule, AdamW (fused), EMAModel with its warm-up, bf16 autocast and channels-last in training and in sampling;
DPMSolverMultistepScheduler (DPM-Solver++ 2M), classifier-free guidance in one doubled batch. Attention only at the
innermost level; parameters within 10% of sfumato's default at 32x32.

How the settings were chosen. Widths: of six shapes of that size, with a step as cheap as the cheapest within 5% (others
took up to 1.3 times as long); two groups a norm instead of eight cut a step from 10.9 to 8.9 ms an image on one thread.
Then short trainings of 75 s of one thread, one change each, Frechet distance of 500 images at 15 evaluations in the
features of a throwaway classifier: learning rate 1e-3 220, 2e-3 222, 2e-3 with min-SNR weights 240; 1e-3 with 2x2
patches 209 (``PATCHED``). One of 120 s, by the spacing of the time steps: trailing 165, linspace 166, Karras 185,
leading 190. That is as long as the shortest comparison at most: at longer budgets close ones may change places. With
texts no trials were made: 2x2 patches, two groups and a rate of 1e-3, which were best at short budgets. Of the shapes of
that size, a step of (64, 80) in patches of 2x2 took 9.2 ms an image on one thread, of (32, 64, 80) in single pixels
14.0, of (64, 80) in single pixels 28.8.
"""

from __future__ import annotations

import importlib
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

DROP = 0.1  # of the labels and texts
BATCH, RATE, WARMUP, EMA_POWER = 32, 1e-3, 0.03, 0.75  # the warm-up is a share of the budget
SCHEDULE: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
NETWORKS = {"classes": "unet_2d.UNet2DModel", "texts": "unet_2d_condition.UNet2DConditionModel"}


@dataclass(frozen=True)
class Peer:
    """A U-Net with class labels, by default."""

    sampling: tuple[str, ...] = ("10", "15", "20")  # evaluations of the network
    widths: tuple[int, ...] = (32, 64, 96)  # at 32x32, 16x16, 8x8
    patch: int = 1  # pixels a side that the network sees as one, with patch^2 channels
    kind: str = "classes"

    def build(self, data: ImageSet) -> Any:
        """The untrained network; label ``classes`` stands for "dropped"."""
        levels, values = len(self.widths) - 1, data.channels * self.patch**2
        shape: dict[str, Any] = {
            "sample_size": (data.size[0] // self.patch, data.size[1] // self.patch),
            "in_channels": values,
            "out_channels": values,
            "block_out_channels": self.widths,
            "layers_per_block": 1,  # one more on the way up
            "norm_num_groups": 2,  # few wide groups take the fast bf16 path of a CPU
        }
        return _network(self.kind)(**shape, **self.inner(data, levels)).to(memory_format=torch.channels_last)

    def inner(self, data: ImageSet, levels: int) -> dict[str, Any]:
        """Attention, and what the network is conditioned on."""
        return {
            "attention_head_dim": 32,
            "down_block_types": ("DownBlock2D",) * levels + ("AttnDownBlock2D",),
            "up_block_types": ("AttnUpBlock2D",) + ("UpBlock2D",) * levels,
            "num_class_embeds": len(data.classes) + 1,
        }

    def conditions(self, data: ImageSet, seed: int) -> Any:
        """A function of a batch's rows and images: what the network is given, dropped at random."""
        assert data.labels is not None
        labels, dropped = torch.from_numpy(data.labels.copy()), len(data.classes)
        return lambda rows, images: torch.where(torch.rand(len(rows)) < DROP, dropped, labels[rows])

    def predict(self, unet: Any, z: Tensor, t: Tensor, c: Any) -> Tensor:
        """v, float32."""
        with _autocast():
            return unet(z, t, c).sample.float()

    def train(self, data: ImageSet, seconds: float, seed: int, out: Path) -> dict[str, Any]:
        """Train for ``seconds`` and write the averaged network; only the steps themselves are on the clock."""
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
        from diffusers.training_utils import EMAModel

        torch.manual_seed(seed)
        conditions, unet = self.conditions(data, seed), self.build(data)
        schedule: Any = DDPMScheduler(1000, **SCHEDULE)
        optimizer = torch.optim.AdamW(unet.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        warmup: dict[str, Any] = {"use_ema_warmup": True, "inv_gamma": 1.0, "power": EMA_POWER}
        average = EMAModel(unet.parameters(), decay=0.9999, foreach=True, **warmup)
        steps, spent, began = 0, 0.0, time.perf_counter()
        while spent < seconds:
            for group in optimizer.param_groups:
                group["lr"] = RATE * _rate(spent / seconds)
            rows = torch.randint(len(data), (BATCH,))
            images = 2 * data.pixels(rows.numpy()) - 1
            c = conditions(rows, images)
            x = F.pixel_unshuffle(images, self.patch)  # (B, C * patch^2, H / patch, W / patch)
            x = x.contiguous(memory_format=torch.channels_last)
            t, noise = torch.randint(1000, (BATCH,)), torch.randn_like(x)
            z, v = schedule.add_noise(x, noise, t), schedule.get_velocity(x, noise, t)
            F.mse_loss(self.predict(unet, z, t, c), v).backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.step(unet.parameters())
            steps += 1
            spent = time.perf_counter() - began
        average.copy_to(unet.parameters())
        unet.save_pretrained(out)
        parameters = sum(p.numel() for p in unet.parameters())
        return {"steps": steps, "images": steps * BATCH, "parameters": parameters, "seconds": spent}

    @torch.no_grad()
    def sample(self, out: Path, count: int, setting: str, seed: int, c: Condition | None = None) -> Tensor:
        """(count, C, H, W) in [0, 1]; ``setting`` is ``STEPS``, with a condition ``STEPS:GUIDANCE``."""
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        steps, _, scale = setting.partition(":")
        unet = _load(out, self.kind)
        order: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2, "timestep_spacing": "trailing"}
        solver: Any = DPMSolverMultistepScheduler(1000, **SCHEDULE, **order)
        solver.set_timesteps(int(steps))
        solver.set_begin_index(0)
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn((count, unet.config.in_channels, *unet.config.sample_size), generator=generator)
        z = (z * solver.init_noise_sigma).contiguous(memory_format=torch.channels_last)
        given = torch.arange(count) % (unet.config.num_class_embeds - 1) if c is None else _doubled(c, count)
        for t in solver.timesteps:
            scaled = solver.scale_model_input(z, t)
            if c is None:
                v = self.predict(unet, scaled, t, given)
            else:
                with_text, without = self.predict(unet, torch.cat([scaled] * 2), t, given).chunk(2)
                v = torch.lerp(without, with_text, float(scale))
            z = solver.step(v, t, z).prev_sample
        return ((F.pixel_shuffle(z, self.patch) + 1) / 2).clamp(0, 1)

    def evaluations(self, out: Path, setting: str) -> int:
        return int(setting)


class TextPeer(Peer):
    """A U-Net with cross-attention to texts."""

    def inner(self, data: ImageSet, levels: int) -> dict[str, Any]:
        width = source_of(data, "minilm").kinds.tokens
        return {
            "attention_head_dim": 2,  # in this class the number of heads, whatever its name
            "down_block_types": ("DownBlock2D",) * levels + ("CrossAttnDownBlock2D",),
            "up_block_types": ("CrossAttnUpBlock2D",) + ("UpBlock2D",) * levels,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "cross_attention_dim": width,
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": width,
        }

    def conditions(self, data: ImageSet, seed: int) -> Any:
        source, generator = source_of(data, "minilm"), torch.Generator().manual_seed(seed)
        return lambda rows, images: source.batch(rows.numpy(), images, generator).drop(DROP, len(rows), generator)

    def predict(self, unet: Any, z: Tensor, t: Tensor, c: Condition) -> Tensor:
        """A token of zeros is always there, the only one where the text is dropped."""
        assert c.tokens is not None and c.mask is not None and c.vector is not None
        here = torch.ones(len(z), dtype=torch.bool) if c.present is None else c.present
        mask = F.pad(c.mask & here[:, None], (1, 0), value=True)
        pooled = c.vector * here[:, None] * c.vector.shape[1] ** 0.5
        with _autocast():
            tokens = F.pad(c.tokens, (0, 0, 1, 0))
            return unet(z, t, tokens, class_labels=pooled, encoder_attention_mask=mask).sample.float()


def _network(kind: str) -> Any:
    module, name = NETWORKS[kind].split(".")
    return getattr(importlib.import_module(f"diffusers.models.unets.{module}"), name)


@lru_cache(maxsize=1)
def _load(out: Path, kind: str) -> Any:
    unet = _network(kind).from_pretrained(out, local_files_only=True)
    return unet.eval().to(memory_format=torch.channels_last)


def _autocast() -> torch.autocast:
    kind = autocast_type(torch.device("cpu"))
    return torch.autocast("cpu", kind or torch.bfloat16, enabled=kind is not None)


def _doubled(c: Condition, count: int) -> Condition:
    """The condition twice, the second time as dropped."""
    assert c.tokens is not None and c.mask is not None and c.vector is not None
    vector, tokens, mask = (torch.cat([each] * 2) for each in (c.vector, c.tokens, c.mask))
    return Condition(vector=vector, tokens=tokens, mask=mask, present=torch.arange(2 * count) < count)


def _rate(fraction: float) -> float:
    """Linear warm-up, then half a cosine down to 0, over the budget's fraction in [0, 1]."""
    if fraction < WARMUP:
        return (fraction + 1e-3) / (WARMUP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (fraction - WARMUP) / (1 - WARMUP)))


CLASSES = Peer()
# The same helped by a trick that its examples do not use, with wider levels for the same number of parameters: it tells
# how much of sfumato's advantage is the patches, which its own network uses at the finest level.
PATCHED = Peer(widths=(64, 96), patch=2)
TEXTS = TextPeer(("15:3", "15:5"), (64, 80), 2, "texts")
