"""The cache of decoded images, and ``data check`` with its preview."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.disk import damaged, no_file_over
from helpers.folders import count_decodes, noise, write_folder
from sfumato.data import ImageSet, cache_folder, check, load, preview

pytestmark = pytest.mark.usefixtures("own_cache")

# the cache


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
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(damaged(data, damage))
    assert load(tmp_path / "set").fingerprint() == sound
    assert file.read_bytes() == data  # and is sound again


def test_cache_of_pickles_is_not_loaded(tmp_path: Path, own_cache: Path) -> None:
    write_folder(tmp_path / "set", 5)
    sound = load(tmp_path / "set").fingerprint()
    file = next(own_cache.glob("*.npy"))
    np.save(file, np.array([print], object), allow_pickle=True)
    assert load(tmp_path / "set").fingerprint() == sound


def test_unwritable_cache_costs_only_the_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = write_folder(tmp_path / "set", 8)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="cache of decoded images cannot be used"):
        assert {i.tobytes() for i in load(tmp_path / "set").images} == set(wanted)
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "full"))
    with no_file_over(1000), pytest.warns(UserWarning, match="larger than this disk allows"):
        assert {i.tobytes() for i in load(tmp_path / "set").images} == set(wanted)
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
