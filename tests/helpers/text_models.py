"""Tiny language models of three families, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "the", "red", "blue", "green", "small", "heart", "cat", "sun", "and", "square"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WIDTH = 24
LAYERS: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
CLIP_TEXT = {**LAYERS, "max_position_embeddings": 32, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}


def _save_tokenizer(folder: Path) -> int:
    """A tokenizer of whole words; returns how many it knows."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]", bos_token="[CLS]"
    )
    fast.save_pretrained(folder)
    return len(vocabulary)


def save_bert(folder: Path, seed: int = 0) -> Path:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=_save_tokenizer(folder), max_position_embeddings=64, **LAYERS)
    torch.manual_seed(seed)
    BertModel(config).save_pretrained(folder)
    return folder


def save_t5(folder: Path) -> Path:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=_save_tokenizer(folder), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    torch.manual_seed(0)
    T5EncoderModel(config).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(vocab_size=_save_tokenizer(folder), **CLIP_TEXT)
    torch.manual_seed(0)
    CLIPTextModel(config).save_pretrained(folder)
    return folder


def save_clip_pair(folder: Path) -> Path:
    """Both halves of a CLIP, for images of 32x32."""
    from transformers import CLIPConfig, CLIPModel

    text = {**CLIP_TEXT, "vocab_size": _save_tokenizer(folder)}
    image = {**LAYERS, "hidden_size": 16, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=12)).save_pretrained(folder)
    return folder
