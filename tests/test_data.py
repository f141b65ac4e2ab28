"""Data sources: the pixels, labels and splits that come out are those that went in."""

from __future__ import annotations

import gzip
import runpy
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.folders import labelled, labels_of, noise, write_folder
from sfumato.core.errors import InputError
from sfumato.data import SOURCES, ImageSet, check, fit_array, load, suggest_size
from sfumato.data.builtin import ARTICLES, CLOTHES, DEBIAN
from sfumato.data.decode import hash_split
from sfumato.data.fit import fit_image

pytestmark = pytest.mark.usefixtures("own_cache")
needs_fashion = pytest.mark.skipif(not DEBIAN.is_dir(), reason="no Debian package dataset-fashion-mnist")


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    raw: Any = load_digits()
    train, test = load("digits"), load("digits", split="test")
    assert (len(train), len(test), train.size, train.channels) == (1497, 300, (8, 8), 1)
    assert train.classes == tuple("0123456789")
    images = [np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in raw["images"]]
    expected = zip(images, raw["target"].tolist(), strict=True)
    assert sorted(labelled(train, test)) == sorted(expected)  # each image once, in one split, with its label
    assert train.images.max() == 255
    assert np.bincount(labels_of(test)).min() >= 20  # every digit is in the test split


def test_digits_split_never_changes() -> None:
    assert load("digits").fingerprint() == "879b2a58954b1672"
    assert load("digits").fingerprint() == load("digits").fingerprint() != load("digits", split="test").fingerprint()


@needs_fashion
def test_fashion_mnist_against_the_published_facts() -> None:
    data = load("fashion-mnist", split="test")
    assert data.images.shape == (10_000, 28, 28, 1) and isinstance(data.images, np.memmap)
    assert np.bincount(labels_of(data)).tolist() == [1000] * 10
    first = [data.classes[i] for i in labels_of(data)[:5]]  # as in the paper's repository
    assert first == ["ankle boot", "pullover", "trouser", "trouser", "shirt"]
    padded = load("fashion-mnist", split="test", size=32, fit="pad")
    assert np.array_equal(padded.images[:, 2:-2, 2:-2], data.images) and isinstance(padded.images, np.memmap)
    assert padded.images[:, :2].max() == 0 and padded.images[:, :, -2:].max() == 0


def test_clothes_are_there_without_a_network() -> None:
    train, test = load("clothes"), load("clothes", split="test")
    assert train.images.shape == (10_000, 28, 28, 1) and test.images.shape == (2_000, 28, 28, 1)
    for data, each in ((train, 1000), (test, 200)):
        assert np.bincount(labels_of(data)).tolist() == [each] * 10 and isinstance(data.images, np.memmap)
        assert data.name == "clothes" and data.classes == ARTICLES
    assert (train.fingerprint(), test.fingerprint()) == ("411795a2d5aee97c", "273dd601c180b53a")  # it never changes
    assert CLOTHES.stat().st_size < 6e6
    assert "Zalando" in (CLOTHES.parent / "LICENSE").read_text() and "MIT" in (CLOTHES.parent / "README.md").read_text()


@needs_fashion
def test_clothes_are_made_again_to_the_byte() -> None:
    tool = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "make_clothes.py"))
    assert tool["make"](DEBIAN) == CLOTHES.read_bytes()
    for split in ("train", "test"):
        whole, part = load("fashion-mnist", split=split), load("clothes", split=split)
        rows = tool["chosen"](labels_of(whole), tool["EACH"][split])
        assert np.array_equal(whole.images[rows], part.images)
        assert np.array_equal(labels_of(whole)[rows], labels_of(part))


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def test_fashion_mnist_from_a_named_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(0, 7, 28, 28)  # (N, H, W)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(idx(images))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.array([9, 0, 3, 3, 1, 2, 8], np.uint8)))
    monkeypatch.setenv("SFUMATO_FASHION_MNIST", str(tmp_path))
    data = load("fashion-mnist", split="test")
    assert np.array_equal(data.images[..., 0], images) and labels_of(data).tolist() == [9, 0, 3, 3, 1, 2, 8]
    assert data.classes[9] == "ankle boot" and len(data.classes) == 10
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(InputError, match="do not belong together"):
        load("fashion-mnist", split="test")


def test_cifar10_from_an_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = {f"x_{s}": np.stack([noise(i + 100 * k, 32, 32) for i in range(6)]) for k, s in enumerate(("train", "test"))}
    y = {f"y_{s}": np.arange(6) + k for k, s in enumerate(("train", "test"))}
    np.savez(tmp_path / "c.npz", **x, **y, classes=np.array([f"class {i}" for i in range(10)]))  # pyright: ignore
    monkeypatch.setenv("SFUMATO_CIFAR10", str(tmp_path / "c.npz"))
    for split in ("train", "test"):
        data = load("cifar10", split=split)
        assert data.name == "cifar10" and data.split == split and len(data.classes) == 10
        assert np.array_equal(data.images, x[f"x_{split}"]) and np.array_equal(labels_of(data), y[f"y_{split}"])


# .npz


@pytest.mark.parametrize("shape", [(60, 8, 8), (60, 8, 10, 1), (60, 10, 8, 3), (60, 8, 8, 4)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
def test_npz_shapes_and_types(tmp_path: Path, shape: tuple[int, ...], kind: type) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    stored = pixels if kind is np.uint8 else ((pixels - 0.3).clip(0) / 255).astype(kind)  # to be rounded
    np.savez(tmp_path / "set.npz", images=stored, labels=np.arange(60).astype(np.uint8) % 3)
    parts = [load(tmp_path / "set.npz", split=split) for split in ("train", "test")]
    assert len(parts[0]) + len(parts[1]) == 60 and 1 <= len(parts[1]) <= 15
    assert parts[0].classes == ("0", "1", "2") and parts[0].name == "set"
    assert dict(labelled(*parts)) == {image.tobytes(): i % 3 for i, image in enumerate(pixels)}


def test_small_npz_serves_as_both_splits_and_labels_are_optional(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=noise(0, 5, 8, 8))
    train, test = load(str(tmp_path / "set.npz")), load(str(tmp_path / "set.npz"), split="test")
    assert len(train) == 5 and train.labels is None and train.classes == ()
    assert train.fingerprint() == test.fingerprint() and test.split == "test"
    assert check(tmp_path / "set.npz").shared


# folders


def test_folder_gives_back_pixels_labels_and_a_fixed_split(tmp_path: Path) -> None:
    wanted = write_folder(tmp_path / "pets")
    train, test = load(tmp_path / "pets"), load(tmp_path / "pets", split="test")
    assert train.name == "pets" and train.size == (16, 16) and train.classes == ("cat", "dog")
    assert isinstance(train.images, np.memmap) and not train.images.flags.writeable
    got = {image: train.classes[k] for image, k in labelled(train, test)}
    assert got == wanted and len(train) + len(test) == 60 and 1 <= len(test) <= 15
    assert len(set(labels_of(train)[:12].tolist())) == 2  # a prefix is mixed, not one class
    # more images: no image changes sides
    before = {i.tobytes() for i in test.images}
    for i in range(60, 90):
        Image.fromarray(noise(i)).save(tmp_path / "pets" / "cat" / f"new{i}.png")
    assert {i.tobytes() for i in load(tmp_path / "pets", split="test").images} >= before
    assert not {i.tobytes() for i in load(tmp_path / "pets").images} & before


def test_hash_split_is_about_a_tenth() -> None:
    share = np.mean([hash_split(f"a/{i}.png") == "test" for i in range(5000)])
    assert abs(share - 0.1) < 4 * (0.09 / 5000) ** 0.5


@pytest.mark.parametrize("test_name", ["test", "Val", "validation"])
def test_ready_made_splits(tmp_path: Path, test_name: str) -> None:
    for k, split in enumerate(("train", test_name)):
        for c, name in enumerate(("9", "10")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2 + k):
                Image.fromarray(noise(100 * k + 10 * c + i)).save(tmp_path / split / name / f"{i}.png")
    train, test = load(tmp_path), load(tmp_path, split="test")
    assert (len(train), len(test)) == (4, 6) and train.classes == test.classes == ("9", "10")
    expected = {noise(100 + 10 * c + i).tobytes(): c for c in range(2) for i in range(3)}
    assert dict(labelled(test)) == expected


def test_flat_folder_is_unlabelled_and_upper_case_suffixes_count(tmp_path: Path) -> None:
    for i, name in enumerate(("a.PNG", "b.Bmp", "c.TIFF")):
        Image.fromarray(noise(i)).save(tmp_path / name)
    data = load(tmp_path)
    assert len(data) == 3 and data.labels is None and data.classes == ()
    assert {i.tobytes() for i in data.images} == {noise(i).tobytes() for i in range(3)}


def test_grey_only_where_all_are_grey(tmp_path: Path) -> None:
    grey = noise(0, channels=1)[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert load(tmp_path).channels == 1
    Image.fromarray(np.dstack([grey] * 3)).save(tmp_path / "b.png")  # grey stored as colour
    data = load(tmp_path)
    assert data.channels == 1 and all(np.array_equal(image[..., 0], grey) for image in data.images)
    assert data.pixels([0, 1]).shape == (2, 1, 16, 16)
    Image.fromarray(noise(1)).save(tmp_path / "c.png")
    data = load(tmp_path)
    assert data.channels == 3 and sum(np.array_equal(i, np.dstack([grey] * 3)) for i in data.images) == 2


def test_default_size() -> None:
    assert suggest_size([(28, 28)] * 3) == (28, 28)
    assert suggest_size([(48, 32)] * 3) == (32, 48)
    assert suggest_size([(31, 31)] * 3) == (24, 24)
    assert suggest_size([(100, 20), (50, 300), (35, 90)]) == (32, 32)
    assert suggest_size([(3, 3), (4, 4)]) == (8, 8) and suggest_size([(4000, 3000), (640, 480)]) == (64, 64)


# bringing to size


@settings(max_examples=60, deadline=None)
@given(
    stored=st.tuples(st.integers(2, 90), st.integers(2, 90), st.sampled_from([1, 3, 4])),
    target=st.tuples(st.integers(4, 32), st.integers(4, 32)),
    fit=st.sampled_from(["crop", "pad"]),
    enlarge=st.booleans(),
)
def test_any_image_comes_to_any_size(stored: Any, target: tuple[int, int], fit: str, enlarge: bool) -> None:
    size, channels = (2 * target[0], 2 * target[1]), stored[2]
    flat = np.full(stored, 77, np.uint8)
    image = Image.fromarray(flat[..., 0] if channels == 1 else flat)
    got = fit_image(image, size, fit, enlarge=enlarge)
    assert got.shape == (*size, channels) and got.dtype == np.uint8
    if channels != 4:  # (Pillow rounds colours under partial transparency)
        assert np.unique(got).tolist() == [77]  # one colour stays one colour, rim included


@settings(max_examples=40, deadline=None)
@given(height=st.integers(2, 32), width=st.integers(2, 32))
def test_pad_of_arrays_keeps_every_pixel(height: int, width: int) -> None:
    images = noise(0, height, width)[None]
    got = fit_array(images, (32, 32), "pad", np.array([1, 2, 3], np.uint8))[0]
    y, x = (32 - height) // 2, (32 - width) // 2
    assert np.array_equal(got[y : y + height, x : x + width], images[0])
    rim = np.ones((32, 32), bool)
    rim[y : y + height, x : x + width] = False
    assert (got[rim] == [1, 2, 3]).all()


def test_crop_keeps_the_centre_and_pad_keeps_all(tmp_path: Path) -> None:
    bars = Image.new("RGB", (48, 16), "red")
    bars.paste("green", (16, 0, 32, 16))
    bars.paste("blue", (32, 0, 48, 16))
    bars.save(tmp_path / "x.png")
    crop, pad = load(tmp_path, size=16, fit="crop").images[0], load(tmp_path, size=48, fit="pad").images[0]
    assert np.abs(crop[:, 2:-2].astype(int) - [0, 128, 0]).max() <= 2
    assert np.array_equal(pad[16:32], np.asarray(bars))
    see_through = Image.new("RGBA", (48, 16), (9, 9, 9, 255))
    see_through.putpixel((20, 8), (0, 0, 0, 0))
    (tmp_path / "alpha").mkdir()
    see_through.save(tmp_path / "alpha" / "x.png")
    rim = load(tmp_path / "alpha", size=48, fit="pad").images[0][:16]
    assert np.unique(rim).tolist() == [255]  # white, not the border


def test_shrinking_averages_instead_of_picking() -> None:
    checks = np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255
    got = fit_image(Image.fromarray(checks), (8, 8), "crop")
    assert np.abs(got.astype(int) - 128).max() <= 8


def test_size_of_arrays_and_of_an_image_set() -> None:
    digits = load("digits", size=(16, 12))
    assert digits.size == (16, 12) and len(digits) == 1497
    again = load(load("digits"), size=(16, 12))
    assert again.fingerprint() == digits.fingerprint()
    assert load(digits) is digits


# ImageSet


def test_pixels_by_every_kind_of_index() -> None:
    data = load("digits")
    expected = torch.from_numpy(data.images.copy()).permute(0, 3, 1, 2).double() / 255
    for index in (3, [3], slice(3, 7), np.array([5, 1, 5]), torch.tensor([2, 0])):
        got = data.pixels(index)
        wanted = expected[[index]] if isinstance(index, int) else expected[index]
        assert got.dtype == torch.float32 and got.is_contiguous()
        torch.testing.assert_close(got.double(), wanted, atol=1e-7, rtol=0)
    data.pixels(slice(0, 4)).zero_()  # a copy: the data does not change
    assert data.images[:4].max() > 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"images": np.zeros((2, 8, 8, 2), np.uint8)}, "images must be"),
        ({"images": np.zeros((0, 8, 8, 1), np.uint8)}, "images must be"),
        ({"images": np.zeros((2, 8, 8, 1), np.float32)}, "images must be"),
        ({"labels": np.zeros(3, np.int64)}, "labels must be"),
        ({"labels": np.zeros(2, np.int32)}, "labels must be"),
        ({"labels": np.array([0, 5])}, "labels run from 0 to 5"),
    ],
)
def test_image_set_refuses_what_does_not_agree(change: dict[str, Any], match: str) -> None:
    sound = ImageSet(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1]), ("a", "b"), "x", "train")
    with pytest.raises(InputError, match=match):
        replace(sound, **change)


def test_fingerprint_sees_every_pixel_label_and_the_shape() -> None:
    images, labels = noise(0, 6, 8, 8)[..., None], np.arange(6) % 2

    def print_of(images: np.ndarray, labels: np.ndarray | None) -> str:
        return ImageSet(images, labels, ("a", "b"), "x", "train").fingerprint()

    one_pixel, one_label = images.copy(), labels.copy()
    one_pixel[5, 7, 7] ^= 1
    one_label[5] = 0
    changed = [(one_pixel, labels), (images, one_label), (images, None), (images.reshape(6, 4, 16, 1), labels)]
    prints = [print_of(*each) for each in [(images, labels), *changed]]
    assert len(set(prints)) == 5 and all(len(p) == 16 and int(p, 16) >= 0 for p in prints)
    assert print_of(images.copy(order="F"), labels) == prints[0]


def test_a_new_source_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    def stripes(split: str) -> ImageSet:
        images = np.zeros((4, 8, 8, 1), np.uint8)
        images[:, ::2] = 255
        return ImageSet(images, None, (), "stripes", split)

    monkeypatch.setitem(SOURCES, "stripes", stripes)
    assert load("stripes", size=16).size == (16, 16)
