"""DALL-E 2: a contrastive embedding, a prior from text to image embedding, and a decoder (Ramesh et al. 2022).

arXiv 2204.06125. The decoder never sees a text: it draws what an image embedding says, so it also draws variations of an
image, images between two, and images moved along the difference of two texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.conditions import Condition, Kinds
from sfumato.conditions.image import ImageTextModel, TransformersClip, find_image_text
from sfumato.conditions.requests import Labels, Prompts, check_prompts
from sfumato.conditions.text import TextEncoder, trained_encoder
from sfumato.config import Config
from sfumato.core.errors import InputError
from sfumato.core.streams import mix_seed
from sfumato.editing import Picture, plan
from sfumato.generator import Generator
from sfumato.ladder import Ladder
from sfumato.recipes.prior import CANDIDATES, Prior
from sfumato.recipes.registry import LOADERS, RecipeFile, check_trained
from sfumato.samplers import Noise, Rung

NAME = "dalle2"
PARTS = ("embedding", "prior", "decoder")  # the sub-folders of a run, in the order of their training
TOWARD = 0.4  # of the way to the text difference, where nothing is asked for; the paper goes to 0.25 to 0.5
_BATCH = 256

Embedding = ImageTextModel | TransformersClip


class DallE2:
    """The three parts, with a Generator's way of sampling.

    Args:
        embedding: of images and texts.
        prior: from texts to image embeddings.
        decoder: from image embeddings to images.
        text: the name of the frozen language model that conditions the prior, beside the text's embedding.
    """

    def __init__(self, embedding: Embedding, prior: Prior, decoder: Generator, text: str) -> None:
        self.embedding, self.prior, self.decoder, self.text = embedding, prior, decoder, text
        self.classes: tuple[str, ...] = ()
        self.device = decoder.device
        self.config: Config = decoder.config
        self.denoiser = decoder.denoiser
        self.ladder: Ladder = decoder.ladder
        self.kinds = Kinds(vector=prior.text_width, tokens=prior.text_width)  # the whole knows texts
        self.default_sampler, self.default_guidance = decoder.default_sampler, decoder.default_guidance

    @cached_property
    def reader(self) -> TextEncoder:
        """The frozen language model; loaded when it is first asked for."""
        return trained_encoder(self.text, self.prior.text_width)

    # -- what the decoder is conditioned on--------------------------------------------------------------------------------

    def imagine(self, prompts: Sequence[str], seed: int = 0) -> Tensor:
        """The embedding of an image of each text, drawn from the prior: (N, D), of unit length.

        Each has its own stream of noise: the same text gives several embeddings, and none depends on the others.
        """
        distinct = list(dict.fromkeys(prompts))
        rows = torch.tensor([distinct.index(text) for text in prompts])
        points, vectors = self.embedding.texts(distinct)[rows], self.reader(distinct).vector[rows]
        noise = Noise(mix_seed(seed, 2**31), range(len(prompts)))((1, CANDIDATES, self.prior.width)).squeeze(1)
        parts = (torch.arange(len(prompts))[i : i + _BATCH] for i in range(0, len(prompts), _BATCH))
        return torch.cat([self.prior.sample(points[part], vectors[part], noise[part]).cpu() for part in parts])

    def embed(self, image: Picture) -> Tensor:
        """The embedding of an image, (1, D): a file, an open image, or (C, H, W) in [0, 1]; brought to the model's size."""
        pixels = plan(self.ladder, image, strength=1.0).image  # (C, H, W) at the finest resolution
        return self.embedding.images(pixels[None].to(self.device)).cpu()

    def condition(
        self, n: int, label: Labels = None, prompt: Prompts = None, first: int = 0, seed: int = 0
    ) -> Condition:
        """The decoder's condition for n images; InputError for a label or an empty prompt."""
        if label is not None:
            raise InputError(f"label {label!r} was asked for, but this model was trained with texts: give a --prompt")
        if prompt is None:
            return Condition()
        return Condition(vector=self.imagine(check_prompts(prompt, n), seed))

    # -- drawing --------------------------------------------------------------------------------------------------------

    def labels(self, n: int, label: Labels = None) -> Tensor:
        """As ``Generator.labels``: there are none."""
        return self.decoder.labels(n, label)

    def sample(
        self,
        n: int = 16,
        label: Labels = None,
        *,
        prompt: Prompts = None,
        condition: Condition | None = None,
        seed: int = 0,
        **how: Any,
    ) -> Tensor:
        """Draw n images; arguments, result and errors as of ``Generator.sample``. The prior is part of it."""
        if n < 1:
            raise InputError(f"n={n}: draw 1 image or more")
        if how.get("weak") is not None:
            raise InputError(
                "a weak model cannot guide dalle2, whose decoder is conditioned on embeddings: leave it out"
            )
        condition = self.condition(n, label, prompt, seed=seed) if condition is None else condition
        return self.decoder.sample(n, condition=condition, seed=seed, **how)

    def variations(self, image: Picture, n: int = 8, **how: Any) -> Tensor:
        """n images with the embedding of the given one, each from noise of its own (section 3.1); ``how`` as in ``sample``."""
        return self.decoder.sample(n, condition=Condition(vector=self.embed(image).expand(n, -1)), **how)

    def interpolate(self, image: Picture, other: Picture, n: int = 8, **how: Any) -> Tensor:
        """n images from one given image to another, along the great circle of their embeddings (section 3.2).

        All are drawn from the same noise, so that only what they show changes.
        """
        if n < 2:
            raise InputError(f"n={n}: an interpolation has 2 images or more, its ends included")
        ends = self.embed(image), self.embed(other)
        return self._one_noise([slerp(*ends, i / (n - 1)) for i in range(n)], **how)

    def edit(
        self, image: Picture, toward: str, away: str | None = None, strength: float = TOWARD, n: int = 1, **how: Any
    ) -> Tensor:
        """Images moved from the given one by the difference of two texts (section 3.3).

        ``z_theta = slerp(z_i, z_d, theta)``, ``z_d = (z_t - z_t0) / |z_t - z_t0|``. All are drawn from the same noise.

        Args:
            image: the one to change.
            toward, away: what it is to become and what it is now (z_t and z_t0); without ``away`` the mean training text.
            strength: theta of the last image, 0 to 1; the others lie at equal steps before it, from 0 on.
            n: how many; one is the last alone.
        """
        if not 0 <= strength <= 1:
            raise InputError(f"strength {strength} is impossible: give 0 (as it is) to 1 (the text alone)")
        if not toward.strip() or (away is not None and not away.strip()):
            raise InputError("a text to move toward or away from is empty: say in words what is to change")
        usual = self.prior.usual_text[None].cpu() if away is None else self.embedding.texts([away])
        difference = self.embedding.texts([toward]) - usual
        if float(difference.norm()) < 1e-4:
            raise InputError(f"{toward!r} and {away!r} say the same: give two texts that differ")
        begin, end = self.embed(image), F.normalize(difference, dim=1)
        thetas = [strength] if n == 1 else [strength * i / (n - 1) for i in range(n)]
        return self._one_noise([slerp(begin, end, theta) for theta in thetas], **how)

    def _one_noise(
        self, embeddings: Sequence[Tensor], progress: Callable[[int, int], None] | None = None, **how: Any
    ) -> Tensor:
        """An image of each embedding (1, D), all from the noise of the request's first image."""
        drawn = []
        for i, embedding in enumerate(embeddings):
            drawn.append(self.decoder.sample(1, condition=Condition(vector=embedding), **how))
            if progress is not None:
                progress(i + 1, len(embeddings))
        return torch.cat(drawn)

    def trace(self, *_: object, **__: object) -> Iterator[Rung]:
        """What the parts do before the decoder is no chain of images."""
        raise InputError(
            "a film shows a chain from noise to image: film the decoder, the folder decoder/ of this model"
        )

    def need_unconditional(self, work: str = "") -> None:
        """As ``Generator.need_unconditional``, of the decoder."""
        self.decoder.need_unconditional(work)

    # -- files ------------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "auto") -> DallE2:
        """Load a run folder; InputError where it is none of this recipe, damaged, or not all parts are there."""
        path = Path(path)
        stored = DallE2File.load(path, "DALL-E 2")
        check_trained(path, {part: part for part in PARTS[bool(stored.embedding) :]})
        return cls(
            find_image_text(stored.embedding or path / "embedding", device),
            Prior.from_pretrained(path / "prior", device),
            Generator.from_pretrained(path / "decoder", device),
            stored.text,
        )

    def save(self, path: str | Path) -> None:
        """Write each part into a sub-folder of ``path``, and ``config.json``."""
        own = isinstance(self.embedding, ImageTextModel)
        if isinstance(self.embedding, ImageTextModel):
            self.embedding.save(Path(path) / "embedding")
        self.prior.save(Path(path) / "prior")
        self.decoder.save(Path(path) / "decoder")
        DallE2File(self.text, "" if own else self.embedding.name).write(Path(path))


def varied(
    model: object,
    images: Sequence[Picture],
    n: int,
    *,
    toward: str | None = None,
    away: str | None = None,
    strength: float | None = None,
    **how: Any,
) -> tuple[Tensor, str]:
    """``variations`` of one image, ``interpolate`` between two, or, with a text, ``edit``; and what was done, in words.

    Raises:
        InputError: a model without an image embedding.
    """
    if not isinstance(model, DallE2):
        raise InputError(f"this model draws no variations of images: train one with 'sfumato train --recipe {NAME}'")
    if toward is not None:
        far = TOWARD if strength is None else strength
        return model.edit(images[0], toward, away, far, n, **how), f"images toward {toward!r}"
    if len(images) > 1:
        return model.interpolate(images[0], images[1], n, **how), "images from one to the other"
    return model.variations(images[0], n, **how), "variations"


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From a (share 0) to b (share 1) on the unit sphere, at constant speed; (B, D) each, of unit length."""
    angle = torch.acos((a * b).sum(1, keepdim=True).clamp(-1, 1))
    sine = angle.sin()
    straight = sine < 1e-4  # equal or opposite: any way will do
    way = ((1 - share) * angle).sin() * a + (share * angle).sin() * b
    return F.normalize(torch.where(straight, (1 - share) * a + share * b + 1e-6, way / sine.clamp_min(1e-4)), dim=1)


@dataclass(frozen=True)
class DallE2File(RecipeFile):
    """``config.json``: the language model of the prior, and the name of an embedding that was not trained here."""

    recipe, single, other = NAME, "a model of another kind", "a model of another kind"
    text: str
    embedding: str

    @classmethod
    def of(cls, found: dict[str, Any]) -> DallE2File:
        if not all(isinstance(found[key], str) for key in ("text", "embedding")):
            raise ValueError("text and embedding must be names")
        return cls(found["text"], found["embedding"])

    def differs(self, found: DallE2File) -> str:
        return "" if found == self else f"text={found.text!r}, embedding={found.embedding!r}"


LOADERS.add(NAME)(DallE2.from_pretrained)
