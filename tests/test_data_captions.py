"""Captions: each image comes with its own texts, from every kind of source."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.captioned import SHARED, colour, needs_shared, picture, pictures, plain, rows, texts_by_image, write
from helpers.commands import Command
from helpers.folders import count_decodes
from helpers.hub import Table, cell, offer
from sfumato.core.errors import InputError
from sfumato.data import ImageSet, captioned_grid, check, load, preview
from sfumato.data.captions import MOST, VARIANTS, variants
from sfumato.data.decode import hash_split

pytestmark = pytest.mark.usefixtures("own_cache")

OTHER_SCRIPTS = ["ein Fuß", "красное сердце", "赤いハート", "قلب أحمر", "❤️‍🔥", "לב"]


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
    calls = count_decodes(monkeypatch)
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
    row: dict[str, Any] = {"text": "flag: Chad", "group": "Flags", "subgroup": "country-flag"}
    row |= {"keywords": ["chad", "flag", "td"], "short_names": ["flag-td", "chad_flag"]}
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


def test_hub_set_with_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    four, texts = [cell(Image.new("RGB", (16, 16), colour(i))) for i in range(4)], [f"caption {i}" for i in range(4)]
    offer(monkeypatch, Table(image=four, text=[1, 2, 3, 4], caption=texts))  # numbers are no captions
    assert texts_by_image(load("hf:a/one")) == plain(4)
    offer(monkeypatch, {"train": Table(image=four, captions=[["x", "y"], [], ["z"], None])})
    with pytest.warns(UserWarning, match="skipped 2 of 4 images: train row 1: its caption is empty; train row 3"):
        assert texts_by_image(load("hf:a/lists")) == {0: ("x", "y"), 2: ("z",)}
    assert [name for name, _ in check("hf:a/lists").captions.without] == ["train row 1", "train row 3"]  # pyright: ignore
    offer(monkeypatch, Table("ab", image=four, text=texts, label=[0, 1, 0, 1]))
    labelled = load("hf:a/labels")
    assert labelled.captions is None and labelled.labels is not None and labelled.classes == ("a", "b")
    offer(monkeypatch, {"train": Table(image=four, text=texts), "test": Table(image=four)})
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
    for part in (
        "5 images, captioned",
        "captions: 5, 4 different",
        "6 different, 4 in one caption only, 2 in three",
        "left out without a caption: 4",
        "images/7.png: its caption has 1,001 characters",
        "images/8.png: no caption",
    ):
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
