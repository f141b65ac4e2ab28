"""Data sources: the pixels, labels and splits that come out are those that went in."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sfumato.data import SOURCES, ImageSet, cache_folder, check, fit_array, load, preview, suggest_size
from sfumato.data.decode import hash_split
from sfumato.data.fit import fit_image
from sfumato.errors import InputError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_fashion = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SFUMATO_CACHE", str(folder))
    return folder


def noise(seed: int, height: int = 16, width: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def labels_of(data: ImageSet) -> np.ndarray:
    assert data.labels is not None
    return data.labels


def write_folder(root: Path, count: int = 60, classes: tuple[str, ...] = ("cat", "dog")) -> dict[str, np.ndarray]:
    """PNGs by class; (pixels as bytes -> class) is what must come back."""
    for i in range(count):
        folder = root / classes[i % len(classes)] / ("deep" if i % 3 == 0 else "")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(i)).save(folder / f"{i:03}.png")
    return {noise(i).tobytes(): classes[i % len(classes)] for i in range(count)}  # pyright: ignore[reportReturnType]


# built-in sets


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    raw: Any = load_digits()
    train, test = load("digits"), load("digits", split="test")
    assert (len(train), len(test), train.size, train.channels) == (1497, 300, (8, 8), 1)
    assert train.classes == tuple("0123456789")
    pairs = [
        (image.tobytes(), int(label))
        for s in (train, test)
        for image, label in zip(s.images, labels_of(s), strict=True)
    ]
    expected = [
        (np.rint(i * 255 / 16).astype(np.uint8).tobytes(), int(t))
        for i, t in zip(raw["images"], raw["target"], strict=True)
    ]
    assert sorted(pairs) == sorted(expected)  # each image once, in one split, with its label
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
    whole = {image.tobytes(): int(label) for p in parts for image, label in zip(p.images, labels_of(p), strict=True)}
    assert whole == {image.tobytes(): i % 3 for i, image in enumerate(pixels)}


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
    got = {i.tobytes(): s.classes[k] for s in (train, test) for i, k in zip(s.images, labels_of(s), strict=True)}
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
    assert {i.tobytes(): k for i, k in zip(test.images, labels_of(test).tolist(), strict=True)} == expected


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
    width=st.integers(2, 90), height=st.integers(2, 90), target=st.tuples(st.integers(4, 32), st.integers(4, 32)),
    fit=st.sampled_from(["crop", "pad"]), channels=st.sampled_from([1, 3, 4]), enlarge=st.booleans(),
)  # fmt: skip
def test_any_image_comes_to_any_size(
    width: int, height: int, target: tuple[int, int], fit: str, channels: int, enlarge: bool
) -> None:
    size = (2 * target[0], 2 * target[1])
    flat = np.full((height, width, channels), 77, np.uint8)
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
    assert np.unique(load(tmp_path / "alpha", size=48, fit="pad").images[0][:16]).tolist() == [
        255
    ]  # white, not the border


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
    sound: dict[str, Any] = {
        "images": np.zeros((2, 8, 8, 1), np.uint8),
        "labels": np.array([0, 1]),
        "classes": ("a", "b"),
    }
    ImageSet(**sound, name="x", split="train")
    with pytest.raises(InputError, match=match):
        ImageSet(**{**sound, **change}, name="x", split="train")


def test_fingerprint_sees_every_pixel_label_and_the_shape() -> None:
    images, labels = noise(0, 6, 8, 8)[..., None], np.arange(6) % 2

    def print_of(images: np.ndarray, labels: np.ndarray | None) -> str:
        return ImageSet(images, labels, ("a", "b"), "x", "train").fingerprint()

    one_pixel, one_label = images.copy(), labels.copy()
    one_pixel[5, 7, 7] ^= 1
    one_label[5] = 0
    prints = [
        print_of(images, labels),
        print_of(one_pixel, labels),
        print_of(images, one_label),
        print_of(images, None),
    ]
    prints.append(print_of(images.reshape(6, 4, 16, 1), labels))
    assert len(set(prints)) == 5 and all(len(p) == 16 and int(p, 16) >= 0 for p in prints)
    assert print_of(images.copy(order="F"), labels) == prints[0]


# the cache


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from sfumato.data import decode

    calls: list[int] = []
    inner = decode.decode_all

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return inner(*args, **kwargs)

    monkeypatch.setattr(decode, "decode_all", counted)
    return calls


def test_decoded_once_and_again_when_a_file_changes(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "set", 5)
    calls = count_decodes(monkeypatch)
    first = load(tmp_path / "set", size=8).fingerprint()
    assert load(tmp_path / "set", size=8, split="test").fingerprint() == first and len(calls) == 1
    load(tmp_path / "set", size=16)
    load(tmp_path / "set", size=8, fit="pad")
    assert len(calls) == 3  # another size or fit is another entry
    Image.fromarray(noise(50)).save(tmp_path / "set" / "dog" / "001.png")
    os.utime(tmp_path / "set" / "dog" / "001.png", ns=(1, 1))
    assert load(tmp_path / "set", size=8).fingerprint() != first and len(calls) == 4
    assert len(list(own_cache.glob("*.npy"))) == 3  # the outdated entry is gone
    assert not [f for f in own_cache.iterdir() if f.name.startswith(".")]


@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbled", "gone"])
def test_damaged_cache_is_rebuilt(tmp_path: Path, own_cache: Path, suffix: str, damage: str) -> None:
    write_folder(tmp_path / "set", 5)
    sound = load(tmp_path / "set").fingerprint()
    file = next(own_cache.glob(f"*{suffix}"))
    data = file.read_bytes()
    middle = len(data) // 2
    if damage == "gone":
        file.unlink()
    else:
        damaged = {"cut": data[:middle], "empty": b"", "garbled": data[:middle] + b"#####" + data[middle + 5 :]}
        file.write_bytes(damaged[damage])
    assert load(tmp_path / "set").fingerprint() == sound
    assert file.read_bytes() == data  # and is sound again


def test_cache_of_pickles_is_not_loaded(tmp_path: Path, own_cache: Path) -> None:
    write_folder(tmp_path / "set", 5)
    sound = load(tmp_path / "set").fingerprint()
    file = next(own_cache.glob("*.npy"))
    np.save(file, np.array([print], object), allow_pickle=True)
    assert load(tmp_path / "set").fingerprint() == sound


def test_unwritable_cache_costs_only_the_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource", reason="no file size limits on this system")
    wanted = write_folder(tmp_path / "set", 8)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="cache of decoded images cannot be used"):
        assert {i.tobytes() for i in load(tmp_path / "set").images} == set(wanted)
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "full"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a disk that is full in the middle of writing
    try:
        with pytest.warns(UserWarning, match="larger than this disk allows"):
            assert {i.tobytes() for i in load(tmp_path / "set").images} == set(wanted)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "full").iterdir())


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SFUMATO_CACHE")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
        assert cache_folder() == tmp_path / "x" / "sfumato"


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", 70)
    seen: list[tuple[int, int]] = []
    load(tmp_path / "set", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 70), (70, 70)]


# check and preview


def test_check_counts(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", 60)
    Image.fromarray(noise(0)).save(tmp_path / "set" / "dog" / "copy.bmp")
    Image.fromarray(noise(1, 40, 30)).save(tmp_path / "set" / "dog" / "tall.png")
    Image.fromarray(noise(2, 16, 16, 1)[..., 0]).save(tmp_path / "set" / "dog" / "grey.png")
    (tmp_path / "set" / "dog" / "bad.png").write_bytes(b"no")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is wrong is in the report, not in warnings
        report = check(tmp_path / "set")
    assert report.count == 63 and report.classes == {"cat": 30, "dog": 33} and sum(report.splits.values()) == 63
    assert report.smallest == (16, 16) and report.largest == (30, 40) and report.median == (16, 16)
    assert report.common_sizes == [((16, 16), 62), ((30, 40), 1)] and report.suggested_size == (16, 16)
    assert report.modes == {"RGB": 62, "L": 1} and report.channels == 3 and report.duplicates == 1
    assert [name for name, _ in report.unreadable] == ["dog/bad.png"]
    assert json.loads(json.dumps(report.to_json()))["classes"] == {"cat": 30, "dog": 33}
    text = "\n".join(report.lines())
    for part in ("63 images, 2 classes", "class dog: 33", "dog/bad.png", "16x16 to 30x40", "duplicates: 1"):
        assert part in text


@pytest.mark.parametrize("source", ["digits", Path("."), ImageSet])
def test_check_of_arrays(tmp_path: Path, source: object) -> None:
    data: Any = source
    if source is ImageSet:
        data = load("digits", split="test")
    elif isinstance(source, Path):
        np.savez(data := tmp_path / "x.npz", x_train=load("digits").images, x_test=load("digits", split="test").images)
    report = check(data)
    assert report.count == (300 if source is ImageSet else 1797) and report.modes == {"L": report.count}
    assert report.splits == ({"test": 300} if source is ImageSet else {"train": 1497, "test": 300})
    assert report.duplicates == 0 and not report.shared and "all 8x8" in "\n".join(report.lines())
    json.dumps(report.to_json())


def test_preview_has_a_row_a_class(tmp_path: Path) -> None:
    for name, colour in (("red \u2603" + "x" * 40, (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (16, 16), colour).save(tmp_path / name / f"{i}.png")
    picture = np.asarray(preview(tmp_path))
    rows = [set(map(tuple, half.reshape(-1, 3))) for half in np.array_split(picture, 2)]
    assert (0, 0, 255) in rows[0] and (255, 0, 0) not in rows[0]  # classes in the order of their names
    assert (255, 0, 0) in rows[1] and (0, 0, 255) not in rows[1]
    assert preview(load("digits")).height > 10 * 64
    np.savez(tmp_path / "x.npz", images=noise(0, 9, 8, 8))
    assert preview(tmp_path / "x.npz").size == (3 * 98 + 2, 3 * 98 + 2)


# the Hub: the package is replaced by a small one with the parts of its interface that are used


class Table:
    def __init__(self, rows: list[dict[str, Any]], names: list[str] | None) -> None:
        self.rows, self.features, self._fingerprint = rows, dict[str, Any](img=Image_()), f"f{len(rows)}"
        if names is not None:
            self.features["label"] = type("ClassLabel", (), {"names": names})()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]

    def select_columns(self, columns: list[str]) -> Table:
        return self

    def cast_column(self, column: str, feature: Any) -> Table:
        assert feature.decode is False
        return self


class Image_:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


Image_.__name__ = "Image"


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(noise(seed, 28, 28)).save(out, format="PNG")
    return out.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    def offer(what: Any) -> None:
        module: Any = types.ModuleType("datasets")
        module.Image = Image_

        def load_dataset(name: str) -> Any:
            if isinstance(what, Exception):
                raise what
            return what

        module.load_dataset = load_dataset
        monkeypatch.setitem(sys.modules, "datasets", module)

    yield offer


def rows(start: int, count: int) -> list[dict[str, Any]]:
    return [{"img": {"bytes": png(i), "path": None}, "label": i % 2} for i in range(start, start + count)]


def test_hub_set_with_splits(hub: Callable[[Any], None]) -> None:
    hub({"train": Table(rows(0, 7), ["a", "b"]), "test": Table(rows(100, 4), ["a", "b"])})
    train, test = load("hf:some/set"), load("hf:some/set", split="test")
    assert (len(train), len(test), train.size, train.classes) == (7, 4, (28, 28), ("a", "b"))
    got = {i.tobytes(): k for i, k in zip(test.images, labels_of(test).tolist(), strict=True)}
    assert got == {noise(i, 28, 28).tobytes(): i % 2 for i in range(100, 104)}
    assert check("hf:some/set").splits == {"train": 7, "test": 4}


def test_hub_set_without_splits_or_labels_and_with_a_bad_row(hub: Callable[[Any], None]) -> None:
    hub({"train": Table([*rows(0, 3), {"img": {"bytes": b"no", "path": None}}], None)})
    with pytest.warns(UserWarning, match="skipped 1 of 4 images: train row 3"):
        train = load("hf:some/set", size=32)
    assert len(train) == 3 and train.labels is None and train.size == (32, 32)


def test_hub_failures_are_one_sentence(
    hub: Callable[[Any], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(ConnectionError("no route to host\nand much more"))
    with pytest.raises(InputError, match=r"'hf:some/set' cannot be fetched \(no route to host\)"):
        load("hf:some/set")
    table = Table(rows(0, 1), None)
    table.features = {"text": object()}
    hub(table)
    with pytest.raises(InputError, match="no image column"):
        load("hf:some/set")
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if not installed
    with pytest.raises(InputError, match=r"pip install sfumato\[hub\]"):
        load("hf:some/set")
    monkeypatch.delenv("SFUMATO_CIFAR10", raising=False)
    with pytest.raises(InputError, match="SFUMATO_CIFAR10"):
        load("cifar10")
    from sfumato.data import builtin

    monkeypatch.setattr(builtin, "_DEBIAN", tmp_path)
    monkeypatch.delenv("SFUMATO_FASHION_MNIST", raising=False)
    with pytest.raises(InputError, match="install the Debian package dataset-fashion-mnist"):
        load("fashion-mnist")


def test_a_new_source_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    def stripes(split: str) -> ImageSet:
        images = np.zeros((4, 8, 8, 1), np.uint8)
        images[:, ::2] = 255
        return ImageSet(images, None, (), "stripes", split)

    monkeypatch.setitem(SOURCES, "stripes", stripes)
    assert load("stripes", size=16).size == (16, 16)
