"""The emoji of the system's font."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.captioned import SHARED, needs_shared
from helpers.commands import Command
from sfumato.core.errors import InputError
from sfumato.data import load

pytestmark = pytest.mark.usefixtures("own_cache")


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
    colours = {"grinning face": (255, 200, 60), "green apple": (130, 180, 60), "blue heart": (40, 160, 230)}
    for text, wanted in colours.items():
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
