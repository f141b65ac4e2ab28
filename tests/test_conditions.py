"""Conditions: what networks hear of them, and what they must not hear."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.conditions import Condition, Kinds
from sfumato.core.errors import InputError
from sfumato.denoisers import Denoiser
from sfumato.denoisers.layers import TextAttention
from sfumato.ladder import Ladder

WIDTH = 12
OPTIONS: dict[str, dict[str, Any]] = {
    "unet": {"channels": (16, 32), "blocks": (1, 1), "patch": 1, "width": 32},
    "dit": {"channels": 64, "depth": 1},
}


def texts(batch: int = 3, length: int = 4, seed: int = 0) -> Condition:
    """Random latents; text i has i + 2 tokens."""
    stream = torch.Generator().manual_seed(seed)
    mask = torch.arange(length) < torch.arange(2, 2 + batch)[:, None]
    tokens = torch.randn(batch, length, WIDTH, generator=stream) * mask[:, :, None]
    return Condition(vector=torch.randn(batch, WIDTH, generator=stream), tokens=tokens, mask=mask)


def awake(module: torch.nn.Module) -> Any:
    """Networks begin as zero: give every weight a value, so that everything takes part."""
    stream = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))
    return module


@pytest.fixture(params=list(OPTIONS))
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    kinds = Kinds(vector=WIDTH, tokens=WIDTH)
    return awake(Denoiser(Ladder((16, 16), 1, 2), kinds, request.param, OPTIONS[request.param]))


def answers(denoiser: Denoiser, c: Condition | None, stage: int = 1, batch: int = 3) -> Tensor:
    z = torch.randn(batch, *denoiser.ladder.shape(stage), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return denoiser(z, torch.full((batch,), 0.7 if stage else 3.0), stage, c)


# -- what is heard -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1])
def test_tokens_and_vector_are_heard(denoiser: Denoiser, stage: int):
    c, other = texts(), texts(seed=1)
    base = answers(denoiser, c, stage)
    assert not torch.allclose(base, answers(denoiser, replace(c, tokens=other.tokens), stage), atol=1e-5)
    assert not torch.allclose(base, answers(denoiser, replace(c, vector=other.vector), stage), atol=1e-5)
    assert not torch.allclose(base, answers(denoiser, None, stage), atol=1e-5)


def test_what_is_masked_is_not_heard(denoiser: Denoiser):
    c = texts()
    assert c.tokens is not None and c.mask is not None
    loud = torch.where(c.mask[:, :, None], c.tokens, 100.0)
    torch.testing.assert_close(answers(denoiser, replace(c, tokens=loud)), answers(denoiser, c))
    tokens, mask = torch.cat([c.tokens, 9 * torch.ones(3, 5, WIDTH)], 1), torch.cat([c.mask, torch.zeros(3, 5) > 0], 1)
    longer = replace(c, tokens=tokens, mask=mask)
    torch.testing.assert_close(answers(denoiser, longer), answers(denoiser, c), atol=1e-5, rtol=1e-4)


def test_what_is_dropped_is_not_heard(denoiser: Denoiser):
    c = texts()
    some = answers(denoiser, replace(c, present=torch.tensor([True, False, True])))
    whole, nothing = answers(denoiser, c), answers(denoiser, None)
    torch.testing.assert_close(some[[0, 2]], whole[[0, 2]], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(some[1], nothing[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(answers(denoiser, c.without()), nothing)


def test_the_scale_of_latents_does_not_matter(denoiser: Denoiser):
    """Language models differ in it by orders of magnitude."""
    c = texts()
    assert c.tokens is not None and c.vector is not None
    scaled = replace(c, tokens=50 * c.tokens, vector=0.02 * c.vector)
    torch.testing.assert_close(answers(denoiser, scaled), answers(denoiser, c), atol=1e-3, rtol=1e-3)


def test_an_image_does_not_depend_on_its_neighbours(denoiser: Denoiser):
    c = texts()
    z = torch.randn(3, *denoiser.ladder.shape(1), generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.5, 0.7, 0.9])
    with torch.no_grad():
        whole = denoiser(z, sigma, 1, c)
        alone = torch.cat([denoiser(z[i : i + 1], sigma[i : i + 1], 1, c[slice(i, i + 1)]) for i in range(3)])
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-4)


def test_attention_is_softmax_over_the_tokens_that_are_there():
    """Against the definition, written out for each image on its own."""
    layer, c = awake(TextAttention(128, WIDTH)), texts(batch=2)
    assert c.tokens is not None and c.mask is not None
    pixels = torch.randn(2, 6, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = layer(pixels, c)
        for i in range(2):
            tokens = c.tokens[i][c.mask[i]]
            tokens = tokens / tokens.square().mean(1, keepdim=True).sqrt()
            key, value = torch.cat([layer.nothing[0], layer.key_value(tokens)]).chunk(2, dim=1)
            query, mixed = layer.query(pixels[i]), []
            for head in range(2):
                part = slice(64 * head, 64 * head + 64)
                mixed.append(((query[:, part] @ key[:, part].T) / 8).softmax(1) @ value[:, part])
            torch.testing.assert_close(found[i], layer.out(torch.cat(mixed, 1)), atol=1e-5, rtol=1e-4)


def test_gradients_reach_all_that_hears(denoiser: Denoiser):
    c = replace(texts(), present=torch.tensor([True, False, True]))
    for stage in (0, 1):
        z = torch.randn(3, *denoiser.ladder.shape(stage), generator=torch.Generator().manual_seed(1))
        denoiser(z, torch.full((3,), 0.7), stage, c).square().sum().backward()
    silent = [name for name, p in denoiser.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert silent == []


# -- the record --------------------------------------------------------------------------------------------------------


def test_a_part_of_a_batch_is_the_parts_of_each_field():
    c = replace(texts(), label=torch.arange(3), image=torch.randn(3, 1, 4, 4), level=torch.ones(3))
    c = c.drop(0.5, 3, torch.Generator().manual_seed(0))
    part = c[slice(1, 3)]
    for field in fields(Condition):
        assert torch.equal(getattr(part, field.name), getattr(c, field.name)[1:3]), field.name
    assert all(value is None for value in vars(Condition()[slice(0, 1)]).values())


def test_an_image_to_enlarge_is_never_dropped():
    c = replace(texts(), image=torch.randn(3, 1, 4, 4), level=torch.ones(3))
    bare = c.without()
    assert bare.image is c.image and bare.level is c.level
    assert bare.tokens is None and bare.vector is None and bare.label is None
    assert not Kinds(image=3).droppable and Kinds(image=3, tokens=4).droppable


def test_models_without_texts_have_no_weights_for_them():
    ladder = Ladder((16, 16), 1, 2)
    plain, told = (Denoiser(ladder, kinds, "unet", OPTIONS["unet"]) for kinds in (Kinds(), Kinds(3, WIDTH, WIDTH)))
    extra = set(told.state_dict()) - set(plain.state_dict())
    assert extra and all("text" in name or "embed.vector" in name for name in extra)


@pytest.mark.parametrize("bad", [{"classes": -1}, {"tokens": 1.5}, {"vector": -3}])
def test_impossible_kinds_are_refused(bad: dict[str, Any]):
    with pytest.raises(InputError, match="impossible"):
        Kinds(**bad)
