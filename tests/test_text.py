"""Texts through frozen language models: tiny ones of three families, built here, and the packaged one."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.text_models import WORDS, save_bert, save_clip, save_t5
from sfumato.conditions.text import LatentStore, TextEncoder, find_encoder
from sfumato.core.errors import InputError

FAMILIES = {"bert": save_bert, "t5": save_t5, "clip": save_clip}
TEXTS = ["a red heart", "cat", "the small blue cat and the red sun"]


@pytest.fixture(scope="module", params=list(FAMILIES))
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return find_encoder(str(FAMILIES[request.param](tmp_path_factory.mktemp(request.param))))


# -- latents -----------------------------------------------------------------------------------------------------------


def test_latents_are_the_models_last_states(encoder: TextEncoder):
    latents = encoder(TEXTS)
    assert latents.tokens.shape == (3, latents.mask.shape[1], encoder.width)
    for i, text in enumerate(TEXTS):
        coded = encoder.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            found = encoder.model(input_ids=coded["input_ids"])
        states, count = found.last_hidden_state[0], coded["input_ids"].shape[1]
        assert int(latents.mask[i].sum()) == count
        torch.testing.assert_close(latents.tokens[i][latents.mask[i]], states, atol=1e-5, rtol=1e-4)
        whole = found.pooler_output[0] if encoder.model.config.model_type.startswith("clip") else states.mean(0)
        torch.testing.assert_close(latents.vector[i], whole / whole.norm(), atol=1e-5, rtol=1e-4)
    assert float(latents.tokens[~latents.mask].abs().sum()) == 0


def test_a_text_does_not_depend_on_its_neighbours(encoder: TextEncoder):
    alone, among = encoder(TEXTS[:1]), encoder(TEXTS)
    torch.testing.assert_close(among.tokens[0][among.mask[0]], alone.tokens[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(among.vector[0], alone.vector[0], atol=1e-5, rtol=1e-4)


def test_long_texts_are_cut(encoder: TextEncoder):
    latents = encoder([" ".join(WORDS * 100)])
    assert latents.mask.shape[1] <= 128 and bool(torch.isfinite(latents.tokens).all())


def test_other_scripts_are_texts_too(encoder: TextEncoder):
    assert bool(torch.isfinite(encoder(["赤いハート", "сердце", "❤️", "قلب"]).vector).all())


def test_the_packaged_model_knows_what_is_alike():
    encoder = find_encoder("minilm")
    vector = encoder(["a kitten", "a small cat", "an airplane", "aircraft"]).vector
    alike = vector @ vector.T
    assert encoder.width == 384
    assert min(alike[0, 1], alike[2, 3]) > 0.5 > max(alike[0, 2], alike[0, 3], alike[1, 2], alike[1, 3])


# -- the store ---------------------------------------------------------------------------------------------------------


def forbid(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the language model was asked again")

    monkeypatch.setattr(encoder.model, "forward", refuse)


def test_the_store_gives_what_the_model_gives(encoder: TextEncoder, own_cache: Path):
    store = LatentStore([*TEXTS, *TEXTS], encoder)
    assert len(store.rows) == len(TEXTS)
    asked = [TEXTS[2], TEXTS[0], TEXTS[2]]
    found, direct = store[asked], encoder(asked)
    assert torch.equal(found.mask, direct.mask)
    torch.testing.assert_close(found.tokens, direct.tokens, atol=2e-3, rtol=2e-3)  # kept in float16
    torch.testing.assert_close(found.vector, direct.vector, atol=2e-3, rtol=2e-3)


def test_latents_are_computed_once(encoder: TextEncoder, own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[tuple[int, int]] = []
    first = LatentStore(TEXTS, encoder, lambda done, total: told.append((done, total)))[TEXTS]
    assert told[-1] == (3, 3)
    forbid(encoder, monkeypatch)
    assert torch.equal(LatentStore(TEXTS[::-1], encoder)[TEXTS].tokens, first.tokens)
    with pytest.raises(AssertionError, match="asked again"):
        LatentStore([*TEXTS, "sun"], encoder)


def test_a_damaged_cache_is_made_anew(encoder: TextEncoder, own_cache: Path):
    first = LatentStore(TEXTS, encoder)[TEXTS]
    (file,) = own_cache.glob("texts-*.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert torch.equal(LatentStore(TEXTS, encoder)[TEXTS].tokens, first.tokens)


def test_another_model_has_a_cache_of_its_own(tmp_path: Path, own_cache: Path):
    first, second = (find_encoder(str(save_bert(tmp_path / name, seed))) for name, seed in (("a", 0), ("b", 1)))
    assert first.fingerprint != second.fingerprint
    assert not torch.equal(LatentStore(TEXTS, first)[TEXTS].vector, LatentStore(TEXTS, second)[TEXTS].vector)


# -- bad input ---------------------------------------------------------------------------------------------------------


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def only_pickles(folder: Path) -> Path:
    save_bert(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    return folder


def truncated(folder: Path) -> Path:
    file = save_bert(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    return folder


@pytest.mark.parametrize("make", [empty, only_pickles, truncated, lambda folder: folder / "nothing-here"])
def test_what_is_no_language_model_is_refused(make: Callable[[Path], Path], tmp_path: Path):
    with pytest.raises(InputError, match="language model"):
        find_encoder(str(make(tmp_path / "model")))
