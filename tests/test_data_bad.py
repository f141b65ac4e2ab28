"""Data that is damaged, odd or missing: what can be read is read rightly, the rest is named, nothing hangs or crashes."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.disk import damaged
from sfumato.core.errors import InputError
from sfumato.data import check, load
from sfumato.data import decode as decoding
from sfumato.data.decode import Unreadable, open_image

pytestmark = pytest.mark.usefixtures("own_cache")


def noise(seed: int = 0, size: tuple[int, int] = (40, 24)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is this large and holds next to nothing: a decompression bomb without the powder."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD = {
    "zero.png": (b"", "empty"),
    "text.jpg": (b"this is no image at all", "not an image"),
    "bomb.png": (png_header(12_000, 10_000), "too large"),
    "huge-bomb.png": (png_header(200_000, 200_000), "too large"),
    "one.png": (png_header(1, 1), "too small"),
}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **options)  # pyright: ignore[reportArgumentType]
    return out.getvalue()


def bad_files(folder: Path) -> dict[str, str]:
    """Write one file of each unreadable kind; (name -> part of the reason)."""
    folder.mkdir(parents=True, exist_ok=True)
    files = dict(BAD)
    jpeg, png = encoded(noise(), "JPEG"), encoded(noise(), "PNG")
    files["cut.jpg"] = (jpeg[: len(jpeg) // 2], "truncated")
    files["cut.png"] = (png[: len(png) // 2], "truncated")
    middle = len(png) // 2
    files["flipped.png"] = (png[:middle] + bytes(b ^ 255 for b in png[middle : middle + 40]) + png[middle + 40 :], "")
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: reason for name, (_, reason) in files.items()}


def test_unreadable_images_are_left_out_and_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    reasons = bad_files(root / "a")
    for i in range(3):
        noise(i).save(root / "a" / f"good{i}.png")
    with pytest.warns(UserWarning, match=rf"skipped {len(reasons)} of {len(reasons) + 3} images.*and 3 more"):
        data = load(root, size=16)
    assert len(data) == 3
    report = check(root, size=16)
    assert {Path(name).name for name, _ in report.unreadable} == set(reasons)
    for name, why in report.unreadable:
        assert why and reasons[Path(name).name] in why, (name, why)
    assert any("unreadable: 8" in line for line in report.lines())
    # the second load comes from the cache, and says the same
    with pytest.warns(UserWarning, match=f"skipped {len(reasons)}"):
        assert load(root, size=16).fingerprint() == data.fingerprint()


def test_only_unreadable_images_is_an_error_that_names_one(tmp_path: Path) -> None:
    bad_files(tmp_path / "set" / "a")
    with pytest.raises(InputError, match=r"none of its 8 images can be read \(the first, a/"):
        load(tmp_path / "set")


@pytest.mark.parametrize("make", ["missing", "empty", "only text", "only hidden", "a file"])
def test_nothing_to_load(tmp_path: Path, make: str) -> None:
    root = tmp_path / "set"
    if make == "a file":
        root = tmp_path / "picture.png"
        noise().save(root)
    elif make != "missing":
        root.mkdir()
    if make == "only text":
        (root / "a").mkdir()
        (root / "a" / "notes.txt").write_text("no image")
    if make == "only hidden":
        for name in (".hidden", "__MACOSX"):
            (root / name).mkdir()
            noise().save(root / name / "x.png")
        noise().save(root / ".dot.png")
    expected = {"missing": "does not exist", "a file": "neither a folder nor an .npz"}.get(make, "holds no image")
    with pytest.raises(InputError, match=expected) as error:
        load(root)
    assert root.name in str(error.value)


def test_class_without_a_readable_image_is_dropped_and_a_class_of_one_is_kept(tmp_path: Path) -> None:
    for name in ("b-bad", "a", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "b-bad" / "x.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    red.save(tmp_path / "a" / "1.png")
    for i in range(2):
        blue.save(tmp_path / "c" / f"{i}.png")
    red.save(tmp_path / "beside.png")
    with pytest.warns(UserWarning) as caught:
        data = load(tmp_path)
    text = " ".join(str(w.message) for w in caught)
    for part in ("'b-bad' has no readable image", "'empty' holds no image", "beside.png"):
        assert part in text
    assert data.classes == ("a", "c") and data.labels is not None
    assert sorted(data.labels.tolist()) == [0, 1, 1]
    for image, label in zip(data.images, data.labels, strict=True):  # the numbers still mean the right folder
        assert image[0, 0].tolist() == ([255, 0, 0] if label == 0 else [0, 0, 255])


def test_link_to_a_folder_above_does_not_hang(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "inner"
    inner.mkdir(parents=True)
    noise().save(inner / "x.png")
    for link, target in ((inner / "up", tmp_path / "a"), (inner / "top", tmp_path)):
        try:
            link.symlink_to(target, target_is_directory=True)
        except OSError:
            pytest.skip("links cannot be made here")
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(UserWarning, match="gone.png"):
        assert len(load(tmp_path, size=16)) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    noise().save(tmp_path / "x.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.warns(UserWarning, match="pipe.png: not an ordinary file"):
        assert len(load(tmp_path, size=16)) == 1


def ramp(top: int, kind: type) -> np.ndarray:
    return np.round(np.linspace(0, top, 256)).astype(kind).reshape(16, 16)


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
HALF = np.where(np.arange(16) < 8, 0, 255).astype(np.uint8) * np.ones((16, 1), np.uint8)  # left clear, right solid


def rgba() -> Image.Image:
    return Image.fromarray(np.dstack([np.full((16, 16), 200, np.uint8), RAMP, RAMP, HALF]))


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(open_image(data))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind: str) -> None:
    data = encoded(Image.fromarray(ramp(65535, np.uint16)), kind)
    assert np.array_equal(decoded(data), RAMP)
    dark = encoded(Image.fromarray(np.full((16, 16), 200, np.uint16)), kind)  # nearly black, not nearly white
    assert np.unique(decoded(dark)).tolist() == [1]


def test_floats_and_32_bits_are_scaled() -> None:
    assert np.array_equal(decoded(encoded(Image.fromarray(ramp(1, np.float32) * 0 + RAMP / 255), "TIFF")), RAMP)
    assert np.array_equal(decoded(encoded(Image.fromarray(RAMP.astype(np.int32) * 257), "TIFF")), RAMP)


def test_transparency_is_laid_on_white() -> None:
    image = rgba()
    expected = np.where(HALF[..., None] == 0, 255, np.asarray(image)[..., :3])
    assert np.array_equal(decoded(encoded(image, "PNG")), expected)
    grey = Image.merge("LA", (Image.fromarray(RAMP), Image.fromarray(HALF)))
    assert np.array_equal(decoded(encoded(grey, "PNG")), np.where(HALF == 0, 255, RAMP))
    half = Image.new("RGBA", (16, 16), (0, 0, 0, 51))  # a fifth of black on white
    assert np.array_equal(np.unique(decoded(encoded(half, "PNG"))), [204])


def test_palettes() -> None:
    colours = Image.fromarray(np.dstack([RAMP, RAMP[::-1], RAMP.T]))
    palette = colours.quantize(16)
    assert np.array_equal(decoded(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    index = np.asarray(palette)
    clear = encoded(palette, "PNG", transparency=int(index[0, 0]))
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[index == index[0, 0]] = 255
    assert np.array_equal(decoded(clear), expected)


def test_colour_key_transparency_of_grey_and_rgb() -> None:
    got = decoded(encoded(Image.fromarray(RAMP), "PNG", transparency=7))
    assert np.array_equal(got, np.where(RAMP == 7, 255, RAMP))
    solid = Image.new("RGB", (16, 16), (10, 20, 30))
    solid.putpixel((3, 2), (1, 2, 3))
    got = decoded(encoded(solid, "PNG", transparency=(1, 2, 3)))
    assert got[2, 3].tolist() == [255, 255, 255] and got[0, 0].tolist() == [10, 20, 30]


def test_one_bit_cmyk_and_animated() -> None:
    bits = Image.fromarray(HALF).convert("1")
    assert np.array_equal(decoded(encoded(bits, "PNG")), HALF)
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert np.abs(decoded(encoded(cyan, "JPEG", quality=95)).astype(int) - [0, 255, 255]).max() <= 6
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decoded(data)[0, 0].tolist() == [255, 0, 0], kind


TURNS = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), "white")  # the top left quarter is black
    upright.paste("black", (0, 0, 16, 8))
    # How the upright picture must lie in the file for the tag to turn it back: as it is, or turned.
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose[TURNS[orientation - 2]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.jpg", quality=95, exif=exif)
    got = np.asarray(open_image(tmp_path / "x.jpg"))[..., 0]
    assert got.shape == (16, 32)
    assert got[:7, :15].max() < 40 and got[9:].min() > 215 and got[:, 17:].min() > 215
    assert check(tmp_path).suggested_size == (16, 32)  # as seen, not as stored


def test_very_long_image_needs_no_more_memory_than_it_has(tmp_path: Path) -> None:
    Image.new("RGB", (20_000, 2), "red").save(tmp_path / "long.png")
    for fit in ("crop", "pad"):
        data = load(tmp_path, size=64, fit=fit)
        assert data.images.shape == (1, 64, 64, 3) and data.images[0, 32, 32].tolist() == [255, 0, 0]


def test_format_that_starts_another_program_is_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    with pytest.raises(Unreadable, match="not an image"):
        open_image(tmp_path / "x.png")


def test_pillow_warnings_set_to_errors_do_not_stop_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise().save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # 40 x 24 is now worth Pillow's warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load(tmp_path, size=16)) == 1
    monkeypatch.setattr(decoding, "MOST_PIXELS", 900)
    noise(size=(40, 22)).save(tmp_path / "y.png")
    with pytest.warns(UserWarning, match="x.png: too large"):
        assert len(load(tmp_path, size=16)) == 1


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("fashion", "did you mean 'fashion-mnist'"),
        ("digit", "did you mean 'digits'"),
        ("zzzzzz", "choose one of"),
        ("", "no name and no path"),
        ("a\0b", "no name and no path"),
        ("./no/such/place", "'./no/such/place' does not exist"),
        ("no-such.npz", "does not exist"),
        ("x" * 5000, "cannot be opened|unknown data source"),
        ("hf:nonsense", "not of the form hf:owner/name"),
    ],
)
def test_unknown_source(source: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        load(source)


@pytest.mark.parametrize("size", [0, -8, 6, 31, 2048, (32, 31), (32, 32, 32), 32.5, "32"])
def test_unusable_size(size: object) -> None:
    with pytest.raises(InputError, match="size"):
        load("digits", size=size)  # pyright: ignore[reportArgumentType]


def test_unknown_split_and_fit() -> None:
    with pytest.raises(InputError, match="did you mean 'test'"):
        load("digits", split="tests")
    with pytest.raises(InputError, match="did you mean 'crop'"):
        load("digits", fit="corp")


X = np.zeros((4, 8, 8, 3), np.uint8)
BAD_ARRAYS = {
    "no images": ({"other": X}, "holds other: it needs 'images'"),
    "channels first": ({"images": np.zeros((4, 3, 8, 8), np.uint8)}, "transpose"),
    "two axes": ({"images": np.zeros((4, 8), np.uint8)}, r"must be \(N, H, W\)"),
    "none": ({"images": X[:0]}, "no pixels"),
    "int64": ({"images": X.astype(np.int64)}, "int64"),
    "floats to 255": ({"images": X.astype(np.float32) + 255}, "scale floats to 0 to 1"),
    "minus one": ({"images": X.astype(np.float32) - 1}, "scale floats to 0 to 1"),
    "nan": ({"images": X + np.float32("nan")}, "scale floats"),
    "few labels": ({"images": X, "labels": np.zeros(3, int)}, "must be 4 whole numbers"),
    "float labels": ({"images": X, "labels": np.zeros(4)}, "must be 4 whole numbers"),
    "negative label": ({"images": X, "labels": np.array([0, 1, 2, -1])}, "count the classes from 0"),
    "few classes": ({"images": X, "labels": np.array([0, 1, 2, 3]), "classes": np.array(["a", "b"])}, "4 names"),
    "twice": ({"images": X, "labels": np.zeros(4, int), "classes": np.array(["a", "a"])}, "names a class twice"),
    "pickled": ({"images": np.array([{}, []], object)}, "never loaded"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_npz(tmp_path: Path, case: str) -> None:
    arrays, match = BAD_ARRAYS[case]
    np.savez(tmp_path / "set.npz", **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=match) as error:
        load(tmp_path / "set.npz")
    assert "set.npz" in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "garbled"])
def test_damaged_npz(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "set.npz"
    np.savez_compressed(path, images=np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8))
    path.write_bytes(b"hello" if damage == "text" else damaged(path.read_bytes(), damage))
    with pytest.raises(InputError, match=r"cannot be read|pickled"):
        load(path)


def test_sources_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_CIFAR10", str(tmp_path / "none.npz"))
    with pytest.raises(InputError, match="SFUMATO_CIFAR10"):
        load("cifar10")
    monkeypatch.setenv("SFUMATO_FASHION_MNIST", str(tmp_path))
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.gz.*is missing"):
        load("fashion-mnist")
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        (tmp_path / name).write_bytes(b"\x1f\x8bnot really gzip")
    with pytest.raises(InputError, match="cannot be read"):
        load("fashion-mnist")
