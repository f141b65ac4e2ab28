"""Training DALL-E 2: the contrastive embedding, the prior and the decoder, in one budget (Ramesh et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.conditions import Condition, Kinds
from sfumato.conditions.image import ImageTextModel, find_image_text
from sfumato.conditions.text import find_encoder
from sfumato.core.checkpoint import digest
from sfumato.core.devices import find_device
from sfumato.core.errors import InputError
from sfumato.data import ImageSet
from sfumato.engine import Budget, Progress
from sfumato.engine.resume import STATE
from sfumato.recipes.dalle2 import NAME, PARTS, DallE2File, Embedding
from sfumato.recipes.prior_training import Pairs, prior_steps
from sfumato.recipes.registry import RECIPES, in_turn
from sfumato.training import TrainingRequest, training_steps
from sfumato.training.contrastive import captions_of, contrastive_steps

SHARES = dict(zip(PARTS, (0.1, 0.15, 0.75), strict=True))  # of the budget
DEFAULTS = {
    "drop": "0.1",  # section 2.1: embeddings are dropped 10% of the time, so that the decoder can be guided
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
        digest: of it, so that a run is resumed with the same one only.
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
def train(request: TrainingRequest) -> Iterator[Progress]:
    """Train the embedding, the prior and the decoder, in turn; all as ``training.training_steps``.

    They share the budget by ``SHARES`` and have run folders of their own inside ``out``. The same request again resumes.
    A larger budget trains the prior and the decoder further; the embedding, on which both stand, stays.

    The settings are the decoder's, over ``DEFAULTS``. ``text`` is the language model of embedding and prior;
    ``embedding=NAME`` takes a CLIP of transformers (a folder, or owner/name) in place of one trained here.

    Raises:
        InputError: as ``training_steps``; images without captions; ``drop=0`` or ``flip=true``.
    """
    out, budget = Path(request.out), request.budget
    dataset = request.dataset()
    captions_of(dataset)
    settings = {**DEFAULTS, **request.settings}
    name = settings.pop("embedding", "").strip()
    request = replace(request, data=dataset, settings=settings)
    config = request.config(dataset)
    if config.drop == 0:
        raise InputError("recipe dalle2 guides its decoder, which drop=0 makes impossible: leave drop at 0.1")
    if config.flip:
        raise InputError(
            "recipe dalle2 embeds each image as it is, and a caption may say left or right: leave flip out"
        )
    stored = DallE2File(config.text, name)
    stored.check_folder(out)
    budgets = _shared(budget, own=not name)
    find_encoder(config.text)
    if name:
        find_image_text(name, request.device)
    return in_turn(stored, out, _parts(request, dataset, stored, budgets))


def _parts(
    request: TrainingRequest, dataset: ImageSet, stored: DallE2File, budgets: Mapping[str, Budget]
) -> Iterator[tuple[str, float, Iterator[Progress]]]:
    """Each model's name, the share of the budget that is used up when it is trained, and its training."""
    out, device, seed = Path(request.out), request.device, request.seed
    if not stored.embedding and not (out / "prior" / STATE).exists():
        part = out / "embedding", budgets["embedding"]
        steps = contrastive_steps(dataset, *part, text=stored.text, device=device, seed=seed)
        yield "embedding", SHARES["embedding"], steps
    embedding = find_image_text(stored.embedding or out / "embedding", device)
    table, digest = embed_all(embedding, dataset, find_device(device))
    pairs = Pairs(dataset, table, embedding, find_encoder(stored.text))
    identity = {"embedding": digest, "data": f"{dataset.name} ({len(dataset)} images, {dataset.fingerprint()})"}
    identity |= {"text": f"{stored.text} ({pairs.reader.fingerprint})", "seed": seed}
    steps = prior_steps(pairs, out / "prior", budgets["prior"], identity=identity, device=device, seed=seed)
    yield "prior", SHARES["embedding"] + SHARES["prior"], steps
    source = Embeddings(table, digest)
    decoder = request.part(out / "decoder", budgets["decoder"], source=lambda _: source)
    yield "decoder", 1.0, training_steps(decoder)


def embed_all(embedding: Embedding, data: ImageSet, device: torch.device) -> tuple[Tensor, str]:
    """The embeddings of all images, (N, D) on the CPU, and 16 hex digits of the embedding's weights."""
    batches = (data.pixels(slice(i, i + BATCH)).to(device) for i in range(0, len(data), BATCH))
    table = torch.cat([embedding.images(pixels).cpu() for pixels in batches])
    return table, digest(embedding if isinstance(embedding, ImageTextModel) else embedding.model)


def _shared(budget: Budget, own: bool) -> dict[str, Budget]:
    """Each part's budget; without an embedding of one's own its share is the others'."""
    shares = {part: share for part, share in SHARES.items() if own or part != "embedding"}
    shares = {part: share / sum(shares.values()) for part, share in shares.items()}
    ((kind, total),) = budget.limits.items()
    if kind == "minutes":
        return {part: Budget(minutes=share * total) for part, share in shares.items()}
    if total < len(shares):
        raise InputError(f"--{kind} {total} cannot be shared over {len(shares)} parts: give {len(shares)} or more")
    counts = {part: max(1, round(share * total)) for part, share in shares.items()}
    counts["decoder"] = max(1, total - sum(count for part, count in counts.items() if part != "decoder"))
    return {part: Budget(**{kind: count}) for part, count in counts.items()}
