"""Images and texts in one space: a contrastive embedding (CLIP, Radford et al. 2021), trained here or of transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from sfumato.conditions.text import BATCH, Latents, TextEncoder, quiet, trained_encoder
from sfumato.core import checkpoint
from sfumato.core.devices import find_device
from sfumato.core.errors import InputError

FORMAT = 1
WIDTH = 128  # numbers an image or a text
SIDE = 64  # pixels: larger images are averaged down to this before the first layer
CHANNELS = (32, 64, 96, 128)  # of the maps, finest first; each has half the side of the one before
TEMPERATURE = 0.07  # to begin with, as in CLIP
SHARPEST = 100.0  # inverse temperature at most, as in CLIP
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pixels that the first CLIP was trained on
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ConvEncoder(nn.Module):
    """(B, C, H, W) pixels in [0, 1] -> (B, ``features``): residual blocks, and where in a 4x4 grid things are."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first = _Halving(channels, CHANNELS[0], 4, padding=1, bias=False)
        layers: list[nn.Module] = [first, nn.BatchNorm2d(CHANNELS[0]), nn.ReLU()]
        for before, here in pairwise(CHANNELS):
            layers += [_Halving(before, here, 3, padding=1, bias=False), nn.BatchNorm2d(here), _Block(here)]
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(CHANNELS[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        self.features = CHANNELS[-1] * 16

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if max(height, width) > SIDE:
            scale = SIDE / max(height, width)
            x = F.interpolate(x, size=(max(2, round(height * scale)), max(2, round(width * scale))), mode="area")
        return self.body((4 * x - 2).contiguous(memory_format=torch.channels_last)).flatten(1)


class _Halving(nn.Conv2d):
    """A convolution of stride 2.

    Where it leaves a single row or column it is computed with stride 1, and every other pixel is taken: on some
    processors torch's bf16 convolution of stride 2 reads beyond the image there, or has a wrong gradient.
    """

    def forward(self, input: Tensor) -> Tensor:
        room = [side + 2 - size for side, size in zip(input.shape[2:], self.kernel_size, strict=True)]
        rows, columns = (1 if pixels < 2 else 2 for pixels in room)
        return F.conv2d(input, self.weight, None, (rows, columns), padding=1)[:, :, :: 2 // rows, :: 2 // columns]


class _Block(nn.Module):
    """x + convolutions, with normalisation before them (He et al. 2016b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), convolution]
        self.inner = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class TextHead(nn.Module):
    """From a frozen language model to the sphere: its pooled vector, and what four learned questions find in its tokens."""

    QUESTIONS = 4

    def __init__(self, text_width: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.pooled = nn.Linear(text_width, width)
        self.question = nn.Linear(text_width, self.QUESTIONS, bias=False)
        self.answer = nn.Linear(text_width * self.QUESTIONS, width, bias=False)
        nn.init.zeros_(self.answer.weight)  # at first the pooled vector speaks alone

    def forward(self, latents: Latents) -> Tensor:
        """Latents of B texts -> (B, width), of any length."""
        vector = F.rms_norm(latents.vector, latents.vector.shape[-1:])
        tokens = F.rms_norm(latents.tokens, latents.tokens.shape[-1:])  # (B, L, D)
        scores = self.question(tokens).masked_fill(~latents.mask[:, :, None], float("-inf"))  # (B, L, Q)
        found = scores.softmax(1).transpose(1, 2) @ tokens  # (B, Q, D)
        return self.pooled(self.dropout(vector)) + self.answer(self.dropout(found.flatten(1)))


class ImageTextModel(nn.Module):
    """CLIP in small: an image encoder of its own, and a head over the latents of a frozen language model.

    Args:
        channels: of the images.
        text: the language model, see ``text.find_encoder``.
        text_width: of its latents.
        width: of the embedding.
        encoder: (B, C, H, W) pixels in [0, 1] -> (B, encoder.features); None is a ConvEncoder to be trained. One that
            is given is not saved with the model.
        dropout: of the image's features and of the text's, in training.
    """

    def __init__(
        self,
        channels: int,
        text: str,
        text_width: int,
        width: int = WIDTH,
        encoder: nn.Module | None = None,
        dropout: tuple[float, float] = (0.2, 0.1),
    ) -> None:
        super().__init__()
        self.channels, self.text, self.text_width, self.width = channels, text, text_width, width
        self.name = "trained here"
        self.own_encoder = encoder is None
        self.encoder = encoder or ConvEncoder(channels)
        features = self.encoder.features
        assert isinstance(features, int)
        self.image_head = nn.Sequential(nn.BatchNorm1d(features), nn.Dropout(dropout[0]), nn.Linear(features, width))
        self.text_head = TextHead(text_width, width, dropout[1])
        self.log_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))

    @property
    def device(self) -> torch.device:
        return self.log_scale.device

    @property
    def scale(self) -> Tensor:
        """The inverse temperature, a scalar."""
        return self.log_scale.clamp(max=math.log(SHARPEST)).exp()

    @cached_property
    def reader(self) -> TextEncoder:
        """The frozen language model; loaded when it is first asked for."""
        return trained_encoder(self.text, self.text_width)

    def of_features(self, features: Tensor) -> Tensor:
        """(B, encoder.features) -> (B, width) of unit length."""
        return F.normalize(self.image_head(features).float(), dim=1)

    def of_latents(self, latents: Latents) -> Tensor:
        """What the language model made of B texts -> (B, width) of unit length."""
        here = Latents(*(part.to(self.device) for part in latents))
        return F.normalize(self.text_head(here).float(), dim=1)

    @torch.no_grad()
    def images(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1], any size, to (B, width) of unit length, on the pixels' device."""
        if pixels.shape[1] != self.channels:
            raise InputError(
                f"images of {pixels.shape[1]} channels cannot be embedded: the model takes {self.channels}"
            )
        return self.of_features(self.encoder(pixels.to(self.device))).to(pixels.device)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """N texts to (N, width) of unit length, on the CPU."""
        parts = [self.of_latents(self.reader(texts[i : i + BATCH])).cpu() for i in range(0, len(texts), BATCH)]
        return torch.cat(parts)

    # -- files --------------------------------------------------------------------------------------------------------

    def description(self) -> dict[str, Any]:
        """Everything but the tensors, ready for JSON."""
        own = {name: getattr(self, name) for name in ("channels", "text", "text_width", "width")}
        return {"kind": "image-text", "format": FORMAT, **own}

    def saved_tensors(self) -> dict[str, Tensor]:
        """The weights and averages of what is trained."""
        return {k: v for k, v in self.state_dict().items() if self.own_encoder or not k.startswith("encoder.")}

    def save(self, path: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` into the folder ``path``."""
        checkpoint.write(Path(path), self.saved_tensors(), self.description())

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "auto") -> ImageTextModel:
        """Load what ``save`` wrote; InputError for anything else."""
        file = checkpoint.find(path)
        tensors, description = checkpoint.read(file)
        if description.get("kind") != "image-text" or description.get("format") != FORMAT:
            raise InputError(f"{file} is no image-text embedding of this version of sfumato: train or copy it again")
        try:
            model = cls(*(description[key] for key in ("channels", "text", "text_width", "width")))
            model.load_state_dict(tensors)
        except (KeyError, TypeError, RuntimeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{file} is damaged ({reason}): train or copy it again") from None
        return model.eval().to(find_device(device))


class TransformersClip:
    """A CLIP of transformers, frozen: both its encoders and their projections.

    Args:
        name: how it was asked for.
        model, tokenizer: of transformers.
        mean, std: of the pixels, by channel, in [0, 1].
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.width = int(model.config.projection_dim)
        self.side = int(model.config.vision_config.image_size)
        self.mean, self.std = (torch.tensor(list(n))[:, None, None] for n in (mean, std))

    @torch.no_grad()
    def images(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1], any size, to (B, width) of unit length, on the pixels' device."""
        x = pixels.to(self.model.device)
        if x.shape[1] == 4:
            x = x[:, :3] * x[:, 3:] + 1 - x[:, 3:]  # on white
        x = F.interpolate(x.expand(-1, 3, -1, -1), (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        pooled = self.model.vision_model((x - self.mean.to(x)) / self.std.to(x)).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=1).to(pixels.device)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """N texts to (N, width) of unit length, on the CPU."""
        longest = self.model.config.text_config.max_position_embeddings
        parts = []
        for first in range(0, len(texts), BATCH):
            coded = self.tokenizer(
                list(texts[first : first + BATCH]),
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            inputs = {key: coded[key].to(self.model.device) for key in ("input_ids", "attention_mask")}
            pooled = self.model.text_model(**inputs).pooler_output
            parts.append(F.normalize(self.model.text_projection(pooled).float(), dim=1).cpu())
        return torch.cat(parts)


def find_image_text(name: str | Path, device: str = "auto") -> ImageTextModel | TransformersClip:
    """A contrastive embedding: a folder that sfumato saved, or any CLIP of transformers by folder or ``owner/name``.

    Weights are read from safetensors alone, and no code that comes with a model is run.

    Raises:
        InputError: nothing of that name, no safetensors, or another kind of model.
    """
    described = Path(name) / "config.json"
    if described.is_file() and '"image-text"' in described.read_text("utf-8", errors="replace"):
        return ImageTextModel.from_pretrained(name, device)
    try:
        from transformers import AutoConfig, AutoTokenizer, CLIPModel
    except ImportError as error:
        raise InputError(f"CLIP needs the package transformers ({error}): pip install transformers") from None
    try:
        if (kind := AutoConfig.from_pretrained(name).model_type) != "clip":
            raise ValueError(f"it is a {kind} model")
        with quiet():
            model: Any = CLIPModel.from_pretrained(name, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(name)
        mean, std = _normalisation(str(name))
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{str(name)!r} is no image-text embedding that can be loaded ({reason}): give a folder that sfumato saved, a "
            "CLIP that transformers saved with safetensors, or owner/name of the Hugging Face Hub"
        ) from None
    return TransformersClip(str(name), model.eval().requires_grad_(False).to(find_device(device)), tokenizer, mean, std)


def _normalisation(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation that a CLIP's pixels are brought to; those of the first CLIP where it says nothing."""
    from transformers.utils.hub import cached_file

    found: dict[str, Any] = {}
    with suppress(OSError):
        file = cached_file(name, "preprocessor_config.json")
        found = json.loads(Path(str(file)).read_text("utf-8")) if file else {}
    return found.get("image_mean", CLIP_MEAN), found.get("image_std", CLIP_STD)
