"""The image-text embedding: its loss against formulas, what counts as a negative, learning, files, CLIPs of transformers."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from helpers.folders import COLOURS
from helpers.text_models import save_bert, save_clip_pair, save_t5
from sfumato.conditions.image import CLIP_MEAN, CLIP_STD, ConvEncoder, ImageTextModel, find_image_text
from sfumato.core.errors import InputError
from sfumato.data import ImageSet
from sfumato.engine import Budget
from sfumato.training.contrastive import Truth, augment, contrastive_loss, contrastive_steps


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_bert(tmp_path_factory.mktemp("bert")))


def squares(count: int = 24, side: int = 16, seed: int = 0) -> ImageSet:
    """Squares of a colour with noise upon it, whose caption names the colour."""
    noise = np.random.default_rng(seed).integers(-20, 21, (count, side, side, 3))
    names = list(COLOURS)
    images = np.stack([np.clip(COLOURS[names[i % 3]] + noise[i], 0, 255) for i in range(count)]).astype(np.uint8)
    captions = tuple((f"a {names[i % 3]} square", names[i % 3]) for i in range(count))
    return ImageSet(images, None, (), "squares", "train", captions)


def points(count: int, width: int, seed: int, kind: torch.dtype = torch.float64) -> Tensor:
    found = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=kind)
    return F.normalize(found, dim=1)


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_loss_of_two_pairs_in_closed_form():
    # u = v = the two axes: logits (s, 0; 0, s), so each term is log(1 + exp(-s)).
    for scale in (0.5, 3.0):
        found = contrastive_loss(torch.eye(2), torch.eye(2), scale)
        assert float(found) == pytest.approx(np.log1p(np.exp(-scale)))
        crossed = contrastive_loss(torch.eye(2), torch.eye(2).flip(0), scale)
        assert float(crossed) == pytest.approx(np.log1p(np.exp(scale)))


def test_loss_against_cross_entropy_both_ways():
    u, v = points(7, 5, 0), points(7, 5, 1)
    logits, right = 9.0 * u @ v.T, torch.arange(7)
    expected = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    torch.testing.assert_close(contrastive_loss(u, v, 9.0), expected)


def test_what_is_true_as_well_is_in_no_denominator():
    u, v = points(6, 4, 0), points(6, 4, 1)
    same = torch.zeros(6, 6, dtype=torch.bool)
    same[0, 3] = same[3, 0] = same[2, 5] = True
    same.fill_diagonal_(True)
    total = 0.0
    for i in range(6):
        for a, b, allowed in ((u, v, ~same[i]), (v, u, ~same[:, i])):
            kept = [j for j in range(6) if j == i or allowed[j]]
            scores = [float(4.0 * a[i] @ b[j]) for j in kept]
            total += np.log(np.exp(scores).sum()) - float(4.0 * a[i] @ b[i])
    assert float(contrastive_loss(u, v, 4.0, same)) == pytest.approx(total / 12)


def test_gradients_against_finite_differences():
    same = torch.eye(5, dtype=torch.bool)
    same[1, 4] = True
    u, v = (points(5, 3, seed).requires_grad_() for seed in (0, 1))
    scale = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b, s: contrastive_loss(a, b, s, same), (u, v, scale))


# -- what is a negative ------------------------------------------------------------------------------------------------


def test_captions_of_equal_images_are_true_of_both():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    images[3] = images[0]
    captions = (("a cat", "animal"), ("a dog", "animal"), ("the sun",), ("kitten",))
    truth = Truth(ImageSet(images, None, (), "four", "train", captions))
    same = truth.same(np.array([0, 1, 2, 3]), ["a cat", "animal", "the sun", "kitten"])
    expected = [[1, 1, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 1]]  # rows images, columns texts
    assert same.int().tolist() == expected


# -- augmentation ------------------------------------------------------------------------------------------------------


def test_augmented_images_keep_their_colour_word():
    plain = torch.stack([torch.full((3, 16, 16), 0.1) for _ in range(300)])
    for i in range(300):
        plain[i, i % 3] = 0.9
    seen = augment(plain, torch.Generator().manual_seed(0))
    assert seen.shape == plain.shape and float(seen.min()) >= 0 and float(seen.max()) <= 1
    assert seen.mean((2, 3)).argmax(1).tolist() == [i % 3 for i in range(300)]
    assert float((seen - plain).abs().amax((1, 2, 3)).min()) > 0  # none is left as it was
    assert torch.equal(seen, augment(plain, torch.Generator().manual_seed(0)))


def test_augmented_images_move_a_little():
    dot = torch.zeros(200, 1, 32, 32)
    dot[:, :, 15:17, 15:17] = 1
    seen = augment(dot, torch.Generator().manual_seed(0))
    weight = seen - seen.amin((2, 3), keepdim=True)
    places = torch.arange(32.0)
    columns = (weight.sum(2) * places).sum(2) / weight.sum((2, 3))
    assert 0.5 < float((columns - 15.5).std()) < 1.5  # up to 1.3 pixels each way, evenly
    assert abs(float((columns - 15.5).mean())) < 0.3


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (16, 4), (400, 6)])
def test_small_and_flat_images_have_right_gradients(size: tuple[int, int]):
    torch.manual_seed(0)
    encoder = ConvEncoder(3).train()
    pixels = torch.rand(12, 3, *size, generator=torch.Generator().manual_seed(0))
    found = []
    for fast in (False, True):  # torch's bf16 gradients are garbage for a stride over a single pixel
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            features = encoder(pixels).float()
        loss = (features * torch.linspace(-1, 1, encoder.features)).sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(encoder.parameters()))]))
    assert float(F.cosine_similarity(*found, dim=0)) > 0.97


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training on coloured squares. Not to be written to."""
    out = tmp_path_factory.mktemp("embedding") / "run"
    for _ in contrastive_steps(squares(), out, Budget(steps=40), text=bert, device="cpu"):
        pass
    return out


def test_images_find_their_texts(run: Path):
    model = ImageTextModel.from_pretrained(run, "cpu")
    new = squares(30, seed=5)
    u = model.images(new.pixels(slice(None)))
    v = model.texts([f"a {name} square" for name in COLOURS])
    torch.testing.assert_close(u.norm(dim=1), torch.ones(30))
    torch.testing.assert_close(v.norm(dim=1), torch.ones(3))
    assert (u @ v.T).argmax(1).tolist() == [i % 3 for i in range(30)]


def test_texts_do_not_depend_on_their_neighbours(run: Path):
    model = ImageTextModel.from_pretrained(run, "cpu")
    together = model.texts(["red", "a small blue cat and the green sun"])
    torch.testing.assert_close(together[:1], model.texts(["red"]), atol=1e-5, rtol=1e-4)


def test_going_on_gives_the_same_weights(bert: str, run: Path, tmp_path: Path):
    with closing(contrastive_steps(squares(), tmp_path, Budget(steps=40), text=bert, device="cpu")) as steps:  # type: ignore[type-var]
        for _ in range(17):
            next(steps)
    assert len(list(contrastive_steps(squares(), tmp_path, Budget(steps=40), text=bert, device="cpu"))) == 40 - 17
    whole, stopped = (load_file(folder / "model.safetensors") for folder in (run, tmp_path))
    assert whole.keys() == stopped.keys() and all(torch.equal(whole[key], stopped[key]) for key in whole)
    assert list(contrastive_steps(squares(), tmp_path, Budget(steps=40), text=bert, device="cpu")) == []
    with pytest.raises(InputError, match="another run"):
        contrastive_steps(squares(seed=1), tmp_path, Budget(steps=40), text=bert, device="cpu")


def test_nothing_to_tell_apart_is_refused(bert: str, tmp_path: Path):
    data = squares()
    bare = ImageSet(data.images, None, (), "bare", "train")
    with pytest.raises(InputError, match="bare has no captions"):
        contrastive_steps(bare, tmp_path / "run", Budget(steps=1), text=bert)
    with pytest.raises(InputError, match="2 or more"):
        contrastive_steps(squares(1), tmp_path / "run", Budget(steps=1), text=bert)
    assert not (tmp_path / "run").exists()


# -- files -------------------------------------------------------------------------------------------------------------


def test_saved_and_found_again(run: Path, tmp_path: Path):
    model = find_image_text(run, "cpu")
    assert isinstance(model, ImageTextModel)
    model.save(tmp_path)
    again = ImageTextModel.from_pretrained(tmp_path, "cpu")
    pixels = torch.rand(2, 3, 100, 80, generator=torch.Generator().manual_seed(0))  # another size than in training
    assert torch.equal(again.images(pixels), model.images(pixels))
    assert torch.equal(again.texts(["red", "blue"]), model.texts(["red", "blue"]))
    with pytest.raises(InputError, match="1 channels"):
        model.images(torch.rand(2, 1, 16, 16))


def test_foreign_files_are_refused(run: Path, digits_run: Path, bert: str, tmp_path: Path):
    with pytest.raises(InputError, match="no image-text embedding"):
        ImageTextModel.from_pretrained(digits_run, "cpu")
    with pytest.raises(InputError, match="it is a bert model"):
        find_image_text(bert, "cpu")
    with pytest.raises(InputError, match="no image-text embedding that can be loaded"):
        find_image_text(tmp_path / "nothing", "cpu")
    with pytest.raises(InputError, match="it is a t5 model"):
        find_image_text(save_t5(tmp_path / "t5"), "cpu")


# -- CLIPs of transformers ---------------------------------------------------------------------------------------------


def test_a_clip_gives_what_transformers_gives(tmp_path: Path):
    from transformers import CLIPModel

    folder = save_clip_pair(tmp_path)
    found, model = find_image_text(folder, "cpu"), CLIPModel.from_pretrained(folder).eval()
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))  # the size it asks for
    mean, std = (torch.tensor(n)[:, None, None] for n in (CLIP_MEAN, CLIP_STD))
    texts = ["a red heart", "the small blue cat and the sun"]
    coded = found.tokenizer(texts, padding=True, return_tensors="pt")  # type: ignore[union-attr]
    with torch.no_grad():
        expected = model(
            input_ids=coded["input_ids"], attention_mask=coded["attention_mask"], pixel_values=(pixels - mean) / std
        )
    torch.testing.assert_close(found.images(pixels), expected.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.texts(texts), expected.text_embeds, atol=1e-5, rtol=1e-4)
    grey = found.images(pixels[:, :1])
    torch.testing.assert_close(grey, found.images(pixels[:, :1].expand(-1, 3, -1, -1)))
    assert found.images(torch.rand(2, 4, 20, 50)).shape == (2, found.width)


def test_a_clip_says_how_its_pixels_are_normalised(tmp_path: Path):
    folder = save_clip_pair(tmp_path)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    usual = find_image_text(folder, "cpu")
    mean, std = (torch.tensor(n)[:, None, None] for n in (CLIP_MEAN, CLIP_STD))
    shown = 0.5 + 0.2 * (pixels - 0.5)  # so that nothing is clipped below
    expected = usual.images(shown)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    changed = find_image_text(folder, "cpu")
    assert not torch.allclose(changed.images(shown), expected, atol=1e-3)
    # The same numbers for the network: (y - 0.5) / 0.5 = (x - mean) / std.
    torch.testing.assert_close(changed.images(0.5 + 0.5 * (shown - mean) / std), expected, atol=1e-4, rtol=1e-3)


def test_a_clip_in_a_pickle_is_refused(tmp_path: Path):
    folder = save_clip_pair(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no image-text embedding that can be loaded"):
        find_image_text(folder, "cpu")
