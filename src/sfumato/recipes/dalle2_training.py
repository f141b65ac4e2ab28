"""Training DALL-E 2: the contrastive embedding, the prior and the decoder, in one budget (Ramesh et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.conditions import Condition, Kinds
from sfumato.conditions.image import ImageTextModel, find_image_text
from sfumato.conditions.text import find_encoder
from sfumato.config import preset as config_of
from sfumato.core import checkpoint
from sfumato.core.checkpoint import digest
from sfumato.core.devices import find_device
from sfumato.core.errors import InputError
from sfumato.data import ImageSet, load
from sfumato.engine.budget import Budget
from sfumato.engine.resume import STATE
from sfumato.recipes.dalle2 import NAME, PARTS, DallE2File, Embedding
from sfumato.recipes.prior import prior_steps
from sfumato.recipes.registry import CONFIG, RECIPES, PartProgress, in_turn
from sfumato.training import Progress, training_steps
from sfumato.training.contrastive import captions_of, contrastive_steps

SHARES = dict(zip(PARTS, (0.1, 0.15, 0.75), strict=True))  # of the budget
DEFAULTS = {
    "drop": "0.1",  # section 2.1: embeddings are dropped 10% of the time, so that they can be pressed
    "guidance": "2",
    "flip": "false",  # embeddings are computed once for each image, as it is
}
"""Settings of the decoder where they differ from what ``sfumato train`` does by itself, or must not follow a change."""
SPREAD = 0.3  # at most, of the noise on embeddings that the decoder is trained with, against their length
BATCH = 256  # images embedded at once


class Embeddings:
    """A decoder's source: the embedding of each image, a little of it noise, for those of the prior are not exact either.

    Args:
        table: (N, D), of unit length.
        digest: of it, so that a run goes on with the same one only.
    """

    def __init__(self, table: Tensor, digest: str) -> None:
        self.kinds = Kinds(vector=table.shape[1])
        self._table, self._digest = table, digest

    def batch(self, index: np.ndarray, x: Tensor, generator: torch.Generator) -> Condition:
        vector = self._table[torch.from_numpy(index)]
        share = SPREAD * torch.rand(len(vector), 1, generator=generator)
        noise = torch.randn(vector.shape, generator=generator) / math.sqrt(vector.shape[1])  # of about unit length
        return Condition(vector=F.normalize(vector + share * noise, dim=1)).to(x.device)

    def identity(self) -> dict[str, Any]:
        return {"embedding": self._digest}


@RECIPES.add(NAME)
def train(
    data: str | Path | ImageSet,
    out: str | Path,
    *,
    minutes: float | None = None,
    images: int | None = None,
    steps: int | None = None,
    preset: str | None = None,
    settings: Mapping[str, str] | None = None,
    size: int | tuple[int, int] | None = None,
    fit: str = "crop",
    device: str = "auto",
    seed: int = 0,
) -> Iterator[Progress]:
    """Train the embedding, the prior and the decoder, one after the other; all as ``training.training_steps``.

    They share the budget by ``SHARES`` and have run folders of their own inside ``out``. The same call goes on where it
    stopped. A larger budget trains the prior and the decoder further; the embedding, on which both stand, stays.

    Args:
        settings: of the decoder, over ``DEFAULTS``. ``text`` is the language model of embedding and prior;
            ``embedding=NAME`` takes a CLIP of transformers (a folder, or owner/name) in place of one trained here.

    Raises:
        InputError: as ``training_steps``; images without captions; ``drop=0`` or ``flip=true``.
    """
    out, budget = Path(out), Budget.of(minutes, images, steps)
    dataset = load(data, size=size, fit=fit)
    captions_of(dataset)
    given = {**DEFAULTS, **(settings or {})}
    name = given.pop("embedding", "").strip()
    config = config_of(dataset.size, preset).with_settings(given)
    if config.drop == 0:
        raise InputError("recipe dalle2 presses its embeddings, which drop=0 makes impossible: leave drop at 0.1")
    if config.flip:
        raise InputError(
            "recipe dalle2 embeds each image as it is, and a caption may say left or right: leave flip out"
        )
    stored = DallE2File(config.text, name)
    _check_folder(out, stored)
    budgets = _shared(budget, own=not name)
    find_encoder(config.text)
    if name:
        find_image_text(name, device)

    def parts() -> Iterator[tuple[str, float, Iterator[Progress]]]:
        how: dict[str, Any] = {"device": device, "seed": seed}
        if not name and not (out / "prior" / STATE).exists():
            part = contrastive_steps(dataset, out / "embedding", text=config.text, **vars(budgets["embedding"]), **how)
            yield "embedding", SHARES["embedding"], part
        embedding = find_image_text(name or out / "embedding", device)
        table, digest = embed_all(embedding, dataset, find_device(device))
        identity = {"embedding": digest, "data": f"{dataset.name} ({len(dataset)} images, {dataset.fingerprint()})"}
        identity |= {"text": f"{config.text} ({find_encoder(config.text).fingerprint})", "seed": seed}
        part = prior_steps(
            dataset,
            table,
            embedding,
            find_encoder(config.text),
            out / "prior",
            budgets["prior"],
            identity=identity,
            **how,
        )
        yield "prior", SHARES["embedding"] + SHARES["prior"], part
        source = Embeddings(table, digest)
        part = training_steps(
            dataset, out / "decoder", preset=preset, settings=given, source=lambda _: source, **vars(budgets["decoder"]),
            **how,
        )  # fmt: skip
        yield "decoder", 1.0, part

    return _steps(parts(), out, stored)


def _steps(
    parts: Iterator[tuple[str, float, Iterator[Progress]]], out: Path, stored: DallE2File
) -> Iterator[PartProgress]:
    stored.write(out)
    yield from in_turn(parts)


def embed_all(embedding: Embedding, data: ImageSet, device: torch.device) -> tuple[Tensor, str]:
    """The embeddings of all images, (N, D) on the CPU, and 16 hex digits of the embedding's weights."""
    batches = (data.pixels(slice(i, i + BATCH)).to(device) for i in range(0, len(data), BATCH))
    table = torch.cat([embedding.images(pixels).cpu() for pixels in batches])
    return table, digest(embedding if isinstance(embedding, ImageTextModel) else embedding.model)


def _check_folder(out: Path, stored: DallE2File) -> None:
    """Refuse a folder with something else in it."""
    if (out / checkpoint.MODEL).exists() or (out / STATE).exists():
        raise InputError(f"{out} holds a model of another kind: give another --out")
    found = DallE2File.read(out)
    if found is None and (out / CONFIG).exists():
        raise InputError(f"{out} holds a model of another kind: give another --out")
    if found is not None and found != stored:
        raise InputError(
            f"{out} holds another run (text={found.text!r}, embedding={found.embedding!r}): give another --out, or the "
            "same command as before"
        )


def _shared(budget: Budget, own: bool) -> dict[str, Budget]:
    """Each part's budget; without an embedding of one's own its share is the others'."""
    shares = {part: share for part, share in SHARES.items() if own or part != "embedding"}
    shares = {part: share / sum(shares.values()) for part, share in shares.items()}
    if budget.minutes is not None:
        return {part: Budget(minutes=share * budget.minutes) for part, share in shares.items()}
    kind, total = ("images", budget.images) if budget.images is not None else ("steps", budget.steps)
    assert total is not None
    if total < len(shares):
        raise InputError(f"--{kind} {total} cannot be shared over {len(shares)} parts: give {len(shares)} or more")
    counts = {part: max(1, round(share * total)) for part, share in shares.items()}
    counts["decoder"] = max(1, total - sum(count for part, count in counts.items() if part != "decoder"))
    return {part: Budget(**{kind: count}) for part, count in counts.items()}
