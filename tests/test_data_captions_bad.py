"""What is wrong with captions is said: one sentence that names the culprit and the cure."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from helpers.captioned import picture, pictures, plain, rows, texts_by_image, write
from helpers.commands import Command
from sfumato.core.errors import InputError
from sfumato.data import check, load

pytestmark = pytest.mark.usefixtures("own_cache")


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
        JSONL,
        "".join(GOOD.replace("0.png", f"x{i}.png") for i in range(7)),
        r"none of the 7 images that 'metadata\.jsonl' names is there: images/x0\.png, .*images/x4\.png and 2 more; "
        r"an image that is there is 'images/0\.png'",
    ),
    "outside": (JSONL, GOOD.replace("images/0.png", "../../etc/passwd"), "none of the 1 images"),
    "blank": (JSONL, GOOD.replace('"a"', '" "'), r"none of its 3 images has a caption .*images/0.png: its caption is"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_metadata(tmp_path: Path, case: str, sfumato: Command) -> None:
    name, content, match = BAD_FILES[case]
    pictures(tmp_path, 3)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=match) as caught:
        load(tmp_path)
    if case not in ("all-missing", "outside", "blank"):
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
