"""Captions: each image comes with its own texts, from every kind of source, and what is wrong with them is said."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import json
import os
import re
import sys
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sfumato.data import ImageSet, captioned_grid, check, load, preview
from sfumato.data.captions import MOST, VARIANTS, variants
from sfumato.data.decode import hash_split
from sfumato.errors import InputError

SHARED = Path(__file__).parents[2] / "shared" / "data" / "emoji_noto64"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder shared/data/emoji_noto64 is not there")
OTHER_SCRIPTS = ["ein Fuß", "красное сердце", "赤いハート", "قلب أحمر", "❤️‍🔥", "לב"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def kept_cache(kept: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for the tests with thousands of images."""
    monkeypatch.setenv("SFUMATO_CACHE", str(kept))


def colour(i: int) -> tuple[int, int, int]:
    """A colour of its own for each image: by it, what comes out is told apart."""
    return (i % 256, 3 * i % 256, 128)


def picture(folder: Path, name: str, i: int, side: int = 16) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour(i)).save(folder / name)


def pictures(folder: Path, count: int) -> list[str]:
    """images/0.png, images/1.png, ...: in a sub-folder, as is common, which must not become a class."""
    names = [f"images/{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        picture(folder, name, i)
    return names


def rows(names: Sequence[str], **columns: Sequence[Any]) -> list[dict[str, Any]]:
    given = {"text": [f"caption {i}" for i in range(len(names))], **columns}
    return [{"file_name": name} | {key: values[i] for key, values in given.items()} for i, name in enumerate(names)]


def write(folder: Path, lines: Sequence[Mapping[str, Any]], name: str = "metadata.jsonl") -> None:
    if name.endswith(".csv"):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    else:
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def texts_by_image(*sets: ImageSet) -> dict[int, tuple[str, ...]]:
    """What came out, by the number of the image as its colour tells it."""
    got: dict[int, tuple[str, ...]] = {}
    for data in sets:
        assert data.captions is not None and data.labels is None and data.classes == ()
        got |= {int(i[0, 0, 0]): texts for i, texts in zip(data.images, data.captions, strict=True)}
    return got


def plain(count: int) -> dict[int, tuple[str, ...]]:
    return {i: (f"caption {i}",) for i in range(count)}


# the field


@pytest.mark.parametrize(
    ("captions", "match"),
    [
        ((("a",),), "1 captions for 2 images"),
        ((("a",), ()), r"image 1 must be .* not \(\)"),
        ((("a",), ("b", " ")), "image 1"),
        ((("a",), "b"), "image 1"),
        ((("a",), (7,)), "image 1"),
    ],
)
def test_image_set_refuses_captions_that_do_not_fit(captions: Any, match: str) -> None:
    images = np.zeros((2, 8, 8, 1), np.uint8)
    ImageSet(images, None, (), "x", "train", (("a",), ("b", "c")))
    with pytest.raises(InputError, match=match):
        ImageSet(images, None, (), "x", "train", captions)


def test_fingerprint_sees_captions_and_where_they_begin() -> None:
    images = np.zeros((2, 8, 8, 1), np.uint8)
    several: list[Any] = [None, (("a",), ("b",)), (("b",), ("a",)), (("a", "b"), ("b",)), (("a",), ("b", "b"))]
    prints = [ImageSet(images, None, (), "x", "train", captions).fingerprint() for captions in several]
    assert len(set(prints)) == len(several)
    import hashlib

    bare = hashlib.sha256(repr((2, 8, 8, 1)).encode() + images.tobytes()).hexdigest()[:16]
    assert prints[0] == bare  # without captions the digits are those of a set that cannot have any


# folders


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_folder_with_a_metadata_file(tmp_path: Path, name: str) -> None:
    names = pictures(tmp_path, 60)
    write(tmp_path, rows(names), name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, test = load(tmp_path), load(tmp_path, split="test")
    assert texts_by_image(train, test) == plain(60) and len(train) + len(test) == 60
    held_out = {i for i, n in enumerate(names) if hash_split(n, captioned=True) == "test"}
    assert set(texts_by_image(test)) == held_out and 0 < len(held_out) < 10


def test_a_twentieth_is_held_out_and_is_held_out_of_uncaptioned_sets_too() -> None:
    names = [f"a/{i}.png" for i in range(5000)]
    held_out = {n for n in names if hash_split(n, captioned=True) == "test"}
    assert 0.04 < len(held_out) / 5000 < 0.06 and held_out < {n for n in names if hash_split(n) == "test"}


def test_file_names_as_people_write_them(tmp_path: Path) -> None:
    """From the metadata file's own folder or the whole one, with ./ and \\, and in either form of accents."""
    files = ["part/0.png", "part/deep/1.png", "part/2.png", "part/é3.png"]
    for i, file in enumerate(files):
        picture(tmp_path, file, i)
    given = ["part/0.png", "deep\\1.png", "./2.png", "e\u0301" + "3.png"]
    write(tmp_path / "part", rows(given))
    assert texts_by_image(load(tmp_path)) == plain(4)


def test_side_cars(tmp_path: Path) -> None:
    for i, name in enumerate(pictures(tmp_path, 4)):
        lines = f"\ufeffcaption {i}\r\n\r\n  a\tvariant  \r\n" if i else "caption 0"
        (tmp_path / name).with_suffix(".TXT" if i == 2 else ".txt").write_text(lines, "utf-8", newline="")
    (tmp_path / "images" / "README.txt").write_text("about this folder")
    assert texts_by_image(load(tmp_path)) == {i: (f"caption {i}", "a variant")[: 1 if i == 0 else 2] for i in range(4)}


def test_several_texts_and_several_rows_an_image(tmp_path: Path) -> None:
    names = pictures(tmp_path, 3)
    lines = rows(names, text=[["one", "two", "one"], "single", ["", "left"]])
    write(tmp_path, [*lines, {"file_name": names[1], "text": "again"}])
    with pytest.warns(UserWarning, match=r"names 1 images more than once, all texts are used: images/1\.png"):
        assert texts_by_image(load(tmp_path)) == {0: ("one", "two"), 1: ("single", "again"), 2: ("left",)}


def test_other_scripts_and_odd_characters_come_through(tmp_path: Path) -> None:
    odd = [*OTHER_SCRIPTS, "one\u2028line", "nul\x00 and\ttab", "lone \ud800 half"]
    names = pictures(tmp_path, len(odd))
    write(tmp_path, rows(names, text=odd))  # json.dumps escapes
    wanted = [*OTHER_SCRIPTS, "one line", "nul and tab", "lone ? half"]
    data = load(tmp_path)
    assert texts_by_image(data) == {i: (text,) for i, text in enumerate(wanted)}
    assert load(tmp_path).fingerprint() == data.fingerprint()
    raw = [json.dumps(row, ensure_ascii=False) for row in rows(names[:-1], text=odd[:-1])]
    (tmp_path / "metadata.jsonl").write_text("\n".join(raw), "utf-8")  # unescaped, U+2028 inside a line
    with pytest.warns(UserWarning, match=r"images/8\.png: no caption"):
        assert texts_by_image(load(tmp_path)) == {i: (text,) for i, text in enumerate(wanted[:-1])}


def test_mixed_sizes_and_modes(tmp_path: Path) -> None:
    """Grey, palette, see-through and large ones beside each other: colour on white, of one size."""
    see_through = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    see_through.putpixel((20, 20), (255, 0, 0, 255))
    for i, image in enumerate([see_through, Image.new("L", (16, 99), 7), Image.new("P", (64, 32)), see_through]):
        image.save(tmp_path / f"{i}.png")
    write(tmp_path, rows([f"{i}.png" for i in range(4)]))
    data = load(tmp_path, size=16)
    assert data.captions is not None and data.images.shape == (4, 16, 16, 3)
    by_text = dict(zip((texts[0] for texts in data.captions), data.images, strict=True))
    assert (by_text["caption 0"][0, 0] == 255).all() and (by_text["caption 1"] == 7).all()


def test_new_captions_are_noticed_and_need_no_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.data import decode

    calls: list[int] = []
    inner = decode.decode_all
    monkeypatch.setattr(decode, "decode_all", lambda *a, **k: calls.append(1) or inner(*a, **k))
    names = pictures(tmp_path, 3)
    write(tmp_path, rows(names))
    state = os.stat(tmp_path / "metadata.jsonl")
    first = load(tmp_path).fingerprint()
    write(tmp_path, rows(names, text=["caption 0", "CAPTION 1", "caption 2"]))
    os.utime(tmp_path / "metadata.jsonl", ns=(state.st_atime_ns, state.st_mtime_ns))  # same size, same time
    again = load(tmp_path)
    assert texts_by_image(again)[1] == ("CAPTION 1",) and again.fingerprint() != first and len(calls) == 1
    write(tmp_path, rows(names[:2]))
    with pytest.warns(UserWarning, match=r"images/2\.png: no caption"):
        assert texts_by_image(load(tmp_path)) == plain(2)
    (tmp_path / "metadata.jsonl").unlink()
    assert load(tmp_path).captions is None and len(load(tmp_path)) == 3


def test_ready_made_splits_with_captions(tmp_path: Path) -> None:
    for split, i in (("train", 0), ("train", 1), ("validation", 2)):
        picture(tmp_path, f"{split}/{i}.png", i)
    write(tmp_path / "train", rows(["0.png", "1.png"]))
    write(tmp_path / "validation", rows(["2.png"], text=["caption 2"]))
    assert texts_by_image(load(tmp_path)) == plain(2)
    assert texts_by_image(load(tmp_path, split="test")) == {2: ("caption 2",)}
    (tmp_path / "train" / "metadata.jsonl").unlink()
    (tmp_path / "validation" / "metadata.jsonl").unlink()
    write(tmp_path, rows(["train/0.png", "train/1.png", "validation/2.png"]))
    assert texts_by_image(load(tmp_path, split="test")) == {2: ("caption 2",)}


def test_resizing_and_image_sets_keep_captions(tmp_path: Path) -> None:
    write(tmp_path, rows(pictures(tmp_path, 3)))
    data = load(tmp_path)
    assert load(data, size=8).captions == data.captions and load(data, size=8).size == (8, 8)


# variation


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.lower()))


WORD = st.text(st.sampled_from("abcXYZ éß心.-:_&"), min_size=1, max_size=9).filter(lambda t: bool(t.strip()))


@settings(max_examples=150, deadline=None)
@given(WORD, st.lists(WORD, max_size=6), st.lists(WORD, max_size=3), st.none() | WORD, st.none() | WORD, st.text())
def test_variants_hold_no_word_that_the_row_does_not(
    text: str, keywords: list[str], short: list[str], group: str | None, subgroup: str | None, name: str
) -> None:
    row = {"text": text, "keywords": keywords, "short_names": short, "group": group, "subgroup": subgroup}
    made = variants(text, row, name)
    assert made == variants(text, row, name) and made[0] == text and len(made) <= VARIANTS
    known = words(" ".join([text, *keywords, *short, group or "", subgroup or ""]))
    assert all(words(t) <= known and t.strip() for t in made)
    others = [t for t in made if t != text]
    assert len(set(others)) == len(others) and made.count(text) == max(1, len(others))  # half of them the text itself


def test_variants_by_eye() -> None:
    row = {
        "text": "flag: Chad", "group": "Flags", "subgroup": "country-flag", "keywords": ["chad", "flag", "td"],
        "short_names": ["flag-td", "chad_flag"],
    }  # fmt: skip
    seen = {t for i in range(60) for t in variants("flag: Chad", row, f"{i}.png")}
    assert {"Chad flag", "flag: Chad, Flags", "flag: Chad, country flag", "flag td", "chad, flag", "flag, chad"} <= seen
    assert "flag: Chad, chad" in seen and "chad" in seen  # "chad" is a keyword, and not the whole text
    assert len({variants("flag: Chad", row, f"{i}.png") for i in range(60)}) > 20  # varied between images
    assert variants("heart", {"text": "heart", "keywords": "heart; Heart, love"}, "x")[1:].count("love") <= 1
    assert {t for i in range(60) for t in variants("heart", {"keywords": "love; red"}, f"{i}")} >= {"love", "red, love"}
    assert variants("cat", {"text": "cat", "keywords": [], "group": 7, "short_names": ["cat"]}, "x") == ("cat",)
    assert max(map(len, variants("cat", {"keywords": ["k" * 990, "l" * 990]}, "x"))) <= MOST


def test_rows_with_keywords_are_varied(tmp_path: Path) -> None:
    names = pictures(tmp_path, 2)
    write(tmp_path, rows(names, keywords=[["red", "love"], []], group=["Hearts", "Hearts"]))
    got = texts_by_image(load(tmp_path))
    assert got[0] == variants("caption 0", {"keywords": ["red", "love"], "group": "Hearts"}, names[0])
    assert got[1] == ("caption 1", "caption 1, Hearts")
    write(tmp_path, rows(names, keywords=["red, love", ""], group=["Hearts", "Hearts"]), "metadata.csv")
    (tmp_path / "metadata.jsonl").unlink()
    assert texts_by_image(load(tmp_path)) == got


@needs_shared
def test_the_shared_emoji(kept_cache: None) -> None:
    train, test = load(SHARED), load(SHARED, split="test")
    assert len(train) + len(test) == 1911 and 70 < len(test) < 120 and train.size == (64, 64) and train.channels == 3
    lines = (SHARED / "metadata.jsonl").read_text("utf-8").splitlines()
    by_text = {row["text"]: row for row in map(json.loads, lines)}
    assert train.captions is not None and test.captions is not None
    assert {texts[0] for s in (train, test) for texts in s.captions or ()} == set(by_text)
    for image, texts in zip(test.images, test.captions, strict=True):
        source = Image.open(SHARED / by_text[texts[0]]["file_name"]).convert("RGBA")
        white = Image.new("RGBA", source.size, "white")
        white.alpha_composite(source)
        assert np.abs(image.astype(int) - np.asarray(white.convert("RGB"))).max() <= 1
    share = np.mean([texts.count(texts[0]) / len(texts) for texts in train.captions])
    assert 0.49 < share < 0.56 and np.mean([len(set(texts)) for texts in train.captions]) > 6
    report = check(SHARED).captions
    assert report is not None and (report.distinct, report.words_often) == (1911, 295)


# arrays and the Hub


def test_npz_with_captions(tmp_path: Path) -> None:
    images = np.stack([np.full((8, 8, 3), colour(i), np.uint8) for i in range(60)])
    texts = np.array([f"caption {i}" for i in range(60)])
    np.savez(tmp_path / "set.npz", images=images, captions=texts)
    train, test = load(tmp_path / "set.npz"), load(tmp_path / "set.npz", split="test")
    assert texts_by_image(train, test) == plain(60) and len(train) + len(test) == 60 and 0 < len(test) < 10
    part = {"x_train": images[:4], "x_test": images[4:6], "captions_train": texts[:4], "captions_test": texts[4:6]}
    np.savez(tmp_path / "parts.npz", **part)
    assert texts_by_image(load(tmp_path / "parts.npz", split="test")) == {i: (f"caption {i}",) for i in (4, 5)}
    several = np.array([["a", "b", ""], ["c", "", ""]])
    np.savez(tmp_path / "several.npz", images=images[:2], captions=several)
    assert texts_by_image(load(tmp_path / "several.npz")) == {0: ("a", "b"), 1: ("c",)}
    np.savez(tmp_path / "both.npz", images=images[:2], captions=several[:, 0], labels=np.array([0, 1]))
    for _ in range(2):  # said again when the pixels come from the cache
        with pytest.warns(UserWarning, match="'labels' is not used"):
            assert texts_by_image(load(tmp_path / "both.npz")) == {0: ("a",), 1: ("c",)}
    np.savez(tmp_path / "gaps.npz", images=images[:3], captions=np.array(["a", " ", "x" * 1001]))
    with pytest.warns(UserWarning, match="skipped 2 of 3 images: 1: its caption is empty; 2: its caption has 1,001"):
        assert texts_by_image(load(tmp_path / "gaps.npz")) == {0: ("a",)}
    report = check(tmp_path / "gaps.npz")
    assert report.captions is not None and "skipped 2 of 3" in report.remarks[0]


@pytest.mark.parametrize(
    ("captions", "match"),
    [
        (np.array(["a"]), "'captions' must be 2 texts"),
        (np.array([1, 2]), "array of strings"),
        (np.array(["", " "]), r"none of its 2 images has a caption .*\(the first, 0: its caption is empty\)"),
        (np.array(["a", "b"], object), "pickled"),
    ],
)
def test_npz_with_captions_that_do_not_fit(tmp_path: Path, captions: np.ndarray, match: str) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 8, 8, 3), np.uint8), captions=captions)
    with pytest.raises(InputError, match=match):
        load(tmp_path / "x.npz")


class ImageColumn:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


ImageColumn.__name__ = "Image"


class Table:
    """As much of a ``datasets.Dataset`` as is used."""

    def __init__(self, **columns: list[Any]) -> None:
        self.columns, self._fingerprint = columns, str(columns.keys())
        self.features = {name: ImageColumn() if name == "image" else object() for name in columns}
        if "label" in columns:
            self.features["label"] = type("ClassLabel", (), {"names": ["a", "b"]})()

    def __len__(self) -> int:
        return len(self.columns["image"])

    def __getitem__(self, key: Any) -> Any:
        return self.columns[key] if isinstance(key, str) else {n: column[key] for n, column in self.columns.items()}

    def select_columns(self, columns: list[str]) -> Table:
        return self

    def cast_column(self, column: str, feature: Any) -> Table:
        return self


def cells(count: int) -> list[Any]:
    made = []
    for i in range(count):
        Image.new("RGB", (16, 16), colour(i)).save(out := io.BytesIO(), format="PNG")
        made.append({"bytes": out.getvalue(), "path": None})
    return made


def test_hub_set_with_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: dict[str, Any] = {}
    module: Any = types.ModuleType("datasets")
    module.Image, module.load_dataset = ImageColumn, lambda name: tables[name]
    monkeypatch.setitem(sys.modules, "datasets", module)
    four, texts = cells(4), [f"caption {i}" for i in range(4)]
    tables["a/one"] = Table(image=four, text=[1, 2, 3, 4], caption=texts)  # numbers are no captions
    assert texts_by_image(load("hf:a/one")) == plain(4)
    tables["a/lists"] = {"train": Table(image=four, captions=[["x", "y"], [], ["z"], None])}
    with pytest.warns(UserWarning, match="skipped 2 of 4 images: train row 1: its caption is empty; train row 3"):
        assert texts_by_image(load("hf:a/lists")) == {0: ("x", "y"), 2: ("z",)}
    assert [name for name, _ in check("hf:a/lists").captions.without] == ["train row 1", "train row 3"]  # pyright: ignore
    tables["a/labels"] = Table(image=four, text=texts, label=[0, 1, 0, 1])
    labelled = load("hf:a/labels")
    assert labelled.captions is None and labelled.labels is not None and labelled.classes == ("a", "b")
    tables["a/half"] = {"train": Table(image=four, text=texts), "test": Table(image=four)}
    assert load("hf:a/half").captions is None


# check and preview


def test_check_counts_captions(tmp_path: Path, sfumato: Command) -> None:
    names = pictures(tmp_path, 9)
    texts = ["a cat", "a dog", "a cat", "the cat sat", "É", "", "  ", "x" * 1001]
    write(tmp_path, rows(names[:8], text=texts))
    report = check(tmp_path)
    got = report.captions
    assert got is not None and report.count == 5 and report.classes == {} and report.modes == {"RGB": 5}
    assert (got.images, got.distinct, got.texts, got.shortest, got.longest) == (5, 4, 4, "É", "the cat sat")
    assert (got.words, got.words_once, got.words_often) == (6, 4, 2)  # a, cat often; dog, the, sat, é once
    assert [name for name, _ in got.without] == ["images/5.png", "images/6.png", "images/7.png", "images/8.png"]
    result = sfumato("data", "check", tmp_path, "-o", tmp_path / "p.png")
    assert result.status == 0
    for part in ("5 images, captioned", "captions: 5, 4 different", "6 different, 4 in one caption only, 2 in three",
                 "left out without a caption: 4", "images/7.png: its caption has 1,001 characters",
                 "images/8.png: no caption"):  # fmt: skip
        assert part in result.out
    (tmp_path / "p.png").unlink()
    shown = json.loads(sfumato("data", "check", tmp_path, "--json").out)["captions"]
    assert shown["distinct"] == 4 and shown["without"][0] == ["images/5.png", "its caption is empty"]


def test_preview_has_a_caption_below_each_image(tmp_path: Path) -> None:
    write(tmp_path, rows(pictures(tmp_path, 40)))
    tile = 128 + 7  # width and gap
    assert preview(tmp_path).width == 6 * tile + 7  # 36 of the 40 images
    assert preview(load("digits")).height > 10 * 64  # labelled sets keep their rows


def test_captioned_grid() -> None:
    images = np.zeros((3, 64, 64, 1), np.uint8)
    captions = ["heart", "a very long caption " * 9, "unbroken" * 40]
    sheet = np.asarray(captioned_grid(images, captions, columns=3))
    gap, line, side = 7, 14, 128
    assert sheet.shape == (gap + side + 2 * line + gap, 3 * (side + gap) + gap, 3)
    below = sheet[gap + side :, :, 0]
    for i, lines in enumerate((1, 2, 2)):
        x = gap + i * (side + gap)
        assert (sheet[gap : gap + side, x : x + side] == 0).all()
        ink = below[:, x : x + side].min(axis=1) < 128
        assert ink[: line + 2].any() and ink[line + 4 :].any() == (lines == 2)
        assert (below[:, x - gap + 2 : x - 2] == 255).all()  # no text runs into the next one
    for script in OTHER_SCRIPTS:
        captioned_grid(images[:1], [script])
    with pytest.raises(InputError, match="2 captions for 3 images"):
        captioned_grid(images, ["a", "b"])


# the emoji of the system's font


def font_is_there() -> bool:
    from sfumato.data.emoji_font import emoji_font

    try:
        return bool(emoji_font())
    except InputError:
        return False


needs_font = pytest.mark.skipif(not font_is_there(), reason="no font NotoColorEmoji.ttf (fonts-noto-color-emoji)")
needs_names = pytest.mark.skipif(importlib.util.find_spec("emoji") is None, reason="the package emoji is not installed")


@needs_font
@pytest.mark.parametrize("names", ["unicode", pytest.param("package", marks=needs_names)])
def test_emoji_of_the_font(names: str, kept_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if names == "unicode":
        monkeypatch.setitem(sys.modules, "emoji", None)  # as if not installed
    train, test = load("emoji"), load("emoji", split="test")
    assert train.size == (64, 64) and train.channels == 3 and train.captions is not None and test.captions is not None
    images = {texts[0]: image for s in (train, test) for texts, image in zip(s.captions or (), s.images, strict=True)}
    assert len(images) == len(train) + len(test) > (1700 if names == "package" else 1000)
    assert 0.03 < len(test) / len(images) < 0.07
    for text, wanted in (
        ("grinning face", (255, 200, 60)),
        ("green apple", (130, 180, 60)),
        ("blue heart", (40, 160, 230)),
    ):
        assert np.abs(images[text][32, 14 if "face" in text else 40].astype(int) - wanted).max() < 90, text
    assert all((image[0, 0] == 255).all() for text, image in images.items() if "face" in text and "clock" not in text)
    assert not any("skin tone" in text for text in images)
    if names == "package":
        assert {"flag: France", "keycap: 5", "red heart"} <= set(images)
        row = next(texts for s in (train, test) for texts in s.captions or () if texts[0] == "flag: France")
        assert "France flag" in row and row.count("flag: France") >= 2
        # A flag is one picture, not two letters: blue, white, red.
        left, middle, right = (images["flag: France"][32, x].astype(int) for x in (10, 32, 54))
        assert left[2] > left[0] + 50 and middle.min() > 200 and right[0] > right[2] + 50


@needs_font
@needs_names
@needs_shared
def test_emoji_of_the_font_agree_with_the_shared_ones(kept_cache: None) -> None:
    font, folder = (
        {texts[0]: image for texts, image in zip(s.captions or (), s.images, strict=True)}
        for s in (load("emoji", split="test"), load(SHARED, split="test"))
    )
    both = font.keys() & folder.keys()
    assert len(both) > 80  # the same ones are held out, under the same names
    assert np.median([np.abs(font[t].astype(int) - folder[t]).mean() for t in both]) < 4  # at the same place


def test_emoji_without_the_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sfumato: Command) -> None:
    from sfumato.data import emoji_font

    monkeypatch.delenv("SFUMATO_EMOJI_FONT", raising=False)
    monkeypatch.setattr(emoji_font, "_font_folders", lambda: [tmp_path])
    sentence = sfumato("data", "check", "emoji").sentence
    assert "fonts-noto-color-emoji" in sentence and "folder of captioned images" in sentence
    monkeypatch.setenv("SFUMATO_EMOJI_FONT", str(tmp_path / "no.ttf"))
    with pytest.raises(InputError, match=r"SFUMATO_EMOJI_FONT: .*no\.ttf' does not exist"):
        load("emoji")
    (tmp_path / "no.ttf").write_bytes(b"no font")
    with pytest.raises(InputError, match=r"no\.ttf' cannot be used"):
        load("emoji")
    matplotlib = importlib.import_module("matplotlib")
    grey = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    monkeypatch.setenv("SFUMATO_EMOJI_FONT", str(grey))
    with pytest.raises(InputError, match=r"DejaVuSans\.ttf' has no emoji in colour"):
        load("emoji")


# bad input


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("metadata.json1", "metadata.jsonl"),
        ("Metadata.JSONL", "metadata.jsonl"),
        ("metadata.json", "metadata.jsonl"),
        ("captions.jsonl", "metadata.jsonl"),
        ("metadata.jsonl.txt", "metadata.jsonl"),
        ("metdata.jsonl", "metadata.jsonl"),
        ("captions.csv", "metadata.csv"),
        ("METADATA.CSV", "metadata.csv"),
        ("metadata.tsv", "metadata.csv"),
        ("images/0.caption", "0.txt"),
    ],
)
def test_near_miss_names(tmp_path: Path, sfumato: Command, name: str, expected: str) -> None:
    names = pictures(tmp_path, 3)
    write(tmp_path, rows(names), name)
    sentence = sfumato("data", "check", tmp_path).sentence
    assert repr(name) in sentence and f"name it {expected!r}" in sentence


def test_near_miss_names_where_the_folder_is_of_use_without(tmp_path: Path) -> None:
    """Beside class folders, metadata.json may be about something else: said, not refused; unless it names files."""
    for i in range(4):
        picture(tmp_path, f"{'cat' if i % 2 else 'dog'}/{i}.png", i)
    (tmp_path / "metadata.json").write_text('{"licence": "CC0"}')
    with pytest.warns(UserWarning, match=r"'metadata\.json' is not used"):
        assert load(tmp_path).classes == ("cat", "dog")
    (tmp_path / "metadata.json").write_text(json.dumps(rows(["cat/1.png"])))
    with pytest.raises(InputError, match=r"named 'metadata\.json'"):
        load(tmp_path)


def test_a_stray_text_beside_labelled_images_makes_no_captions(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path, f"{'cat' if i % 2 else 'dog'}/{i}.png", i)
    (tmp_path / "cat" / "1.txt").write_text("a stray cat")
    with pytest.warns(UserWarning, match=r"only 1 of 6 images have a side-car \.txt: none is used"):
        assert load(tmp_path).classes == ("cat", "dog")


JSONL, CSV = "metadata.jsonl", "metadata.csv"
GOOD = '{"file_name": "images/0.png", "text": "a"}\n'
BAD_FILES = {
    "no-json": (JSONL, GOOD + "\nnot json\n", "line 3 is not JSON"),
    "an-array": (JSONL, f"[{GOOD.strip()}]\n", "line 1 is not a JSON object"),
    "a-deep-line": (JSONL, "[" * 100_000, "line 1 is not JSON"),
    "empty": (JSONL, "\n \n", "is empty"),
    "no-file-name": (JSONL, '{"image": "0.png", "text": "a"}', r"no 'file_name' \(it has image, text\)"),
    "no-text": (JSONL, '{"file_name": "images/0.png", "caption": "a"}', r"no 'text' \(it has file_name, caption\)"),
    "one-row-without-name": (JSONL, GOOD + '{"text": "a"}', "line 2 has no 'file_name'"),
    "a-number": (JSONL, GOOD + '{"file_name": "images/1.png", "text": 7}', "line 2: 'text' must be a text"),
    "list-of-numbers": (JSONL, '{"file_name": "images/1.png", "text": [7]}', "line 1: 'text' must be a text"),
    "latin-1": (JSONL, (GOOD + GOOD.replace("a", "é")).encode("latin-1"), r"not UTF-8 \(line 2\)"),
    "utf-16": (JSONL, GOOD.encode("utf-16"), "not UTF-8"),
    "csv-columns": (CSV, "image,caption\nimages/0.png,a\n", r"no 'file_name' \(it has image, caption\)"),
    "csv-semicolons": (CSV, "file_name;text\nimages/0.png;a\n", r"no 'file_name' \(it has file_name;text\)"),
    "csv-unquoted-comma": (CSV, "file_name,text\nimages/0.png,a\nimages/1.png,a, b\n", "line 3 has 3 columns.*quotes"),
    "csv-open-quote": (CSV, 'file_name,text\nimages/0.png,"a\n', "cannot be read as CSV"),
    "csv-empty": (CSV, "", "is empty"),
    "csv-header-only": (CSV, "file_name,text\n", "is empty"),
    "all-missing": (
        JSONL, "".join(GOOD.replace("0.png", f"x{i}.png") for i in range(7)),
        r"none of the 7 images that 'metadata\.jsonl' names is there: images/x0\.png, .*images/x4\.png and 2 more; "
        r"an image that is there is 'images/0\.png'",
    ),
    "outside": (JSONL, GOOD.replace("images/0.png", "../../etc/passwd"), "none of the 1 images"),
    "all-empty": (JSONL, GOOD.replace('"a"', '" "'), "none of its 3 images has a caption .*images/0.png: its caption is"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_metadata(tmp_path: Path, case: str, sfumato: Command) -> None:
    name, content, match = BAD_FILES[case]
    pictures(tmp_path, 3)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=match) as caught:
        load(tmp_path)
    if case not in ("all-missing", "outside", "all-empty"):
        assert repr(name) in str(caught.value)
    assert re.search(match, sfumato("data", "check", tmp_path).sentence)


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    names = pictures(tmp_path, 2)
    write(tmp_path, rows(names + [f"gone/{i}.png" for i in range(7)]))
    with pytest.warns(UserWarning, match=r"7 images .* are missing: gone/0\.png, .*gone/4\.png and 2 more") as caught:
        assert texts_by_image(load(tmp_path)) == plain(2)
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize("kind", ["metadata.jsonl", "metadata.csv", "side-car"])
def test_images_without_a_usable_caption_are_left_out_and_named(tmp_path: Path, kind: str) -> None:
    """One overlong caption, even one past the CSV reader's own limit, does not stop a training."""
    names = pictures(tmp_path, 8)
    texts = ["fine", "", " \t ", "x" * 10_000, "y" * 1000, "z" * 200_000]  # of 1,000 characters: still a caption
    if kind == "side-car":
        for name, text in zip(names, texts, strict=False):
            (tmp_path / name).with_suffix(".txt").write_text(text)
        (tmp_path / names[6]).with_suffix(".txt").write_bytes("é".encode("latin-1"))
    else:
        write(tmp_path, rows(names[:6], text=texts), kind)
    with pytest.warns(UserWarning, match="skipped 6 of 8 images") as caught:
        assert texts_by_image(load(tmp_path)) == {0: ("fine",), 4: ("y" * 1000,)}
    said = str(caught[0].message)
    assert "images/1.png: its caption is empty" in said and "10,000 characters (1,000 are the most)" in said
    assert "images/2.png" in said and "200,000" in said and "and 1 more" in said
    without = dict(check(tmp_path).captions.without)  # pyright: ignore[reportOptionalMemberAccess]
    assert without["images/6.png"] == ("its .txt is not UTF-8" if kind == "side-car" else "no caption")
    assert without["images/7.png"] == "no caption"


def test_an_overlong_variant_is_left_out_alone(tmp_path: Path) -> None:
    write(tmp_path, rows(pictures(tmp_path, 1), text=[["fine", "x" * 1001]]))
    with pytest.warns(UserWarning, match=r"texts of more than 1,000 characters are left out, of images/0\.png"):
        assert texts_by_image(load(tmp_path)) == {0: ("fine",)}


def test_which_of_several_is_used(tmp_path: Path) -> None:
    names = pictures(tmp_path, 2)
    write(tmp_path, rows(names))
    write(tmp_path, rows(names, text=["from", "csv"]), "metadata.csv")
    (tmp_path / "images" / "0.txt").write_text("from a side-car")
    with pytest.warns(UserWarning) as caught:
        assert texts_by_image(load(tmp_path)) == plain(2)
    said = " ".join(str(w.message) for w in caught)
    assert "of 'metadata.jsonl' and 'metadata.csv' only the first is used" in said
    assert "1 side-car .txt files are not used: 'metadata.jsonl' is" in said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    names = pictures(tmp_path, 2)
    (tmp_path / "images" / "0.txt").write_text("fine")
    os.mkfifo((tmp_path / names[1]).with_suffix(".txt"))
    with pytest.warns(UserWarning, match=r"its \.txt is not an ordinary file"):
        assert texts_by_image(load(tmp_path)) == {0: ("fine",)}
    os.mkfifo(tmp_path / "metadata.jsonl")
    with pytest.raises(InputError, match="not an ordinary file"):
        load(tmp_path)


def test_captions_and_only_unreadable_images(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"no image")
    write(tmp_path, rows(["0.png"]))
    with pytest.raises(InputError, match="none of its 1 images can be read"):
        load(tmp_path)
    (tmp_path / "0.png").unlink()
    with pytest.raises(InputError, match="holds no image"):
        load(tmp_path)
