"""The model that comes with the package: it is there, it is small, and it draws what it is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.commands import Command
from sfumato.generator import Generator, packaged

MOST_BYTES = 25e6


@pytest.fixture(scope="module")
def model() -> Generator:
    return Generator.from_pretrained(packaged(), "cpu")


def drawn(model: Generator, prompt: str, count: int = 4) -> torch.Tensor:
    """(3,): the mean colour of what is drawn, without the white ground."""
    pixels = model.sample(count, prompt=prompt, seed=1)  # (N, 3, H, W)
    ink = pixels.amin(1, keepdim=True) < 0.8
    return (pixels * ink).sum((0, 2, 3)) / ink.sum().clamp(min=1)


def test_it_fits_the_package():
    assert sum(file.stat().st_size for file in packaged().iterdir()) < MOST_BYTES


def test_its_card_tells_what_it_is(model: Generator):
    card = (packaged() / "README.md").read_text()
    parameters = sum(parameter.numel() for parameter in model.denoiser.parameters())
    assert f"{parameters / 1e6:.1f} million parameters" in card
    for word in ("Noto Emoji", "Apache", "Unicode", "sfumato train", "R-precision"):
        assert word in card


def test_colours_are_those_asked_for(model: Generator):
    red, green, blue = (drawn(model, f"{colour} heart") for colour in ("red", "green", "blue"))
    assert red.argmax() == 0 and green.argmax() == 1 and blue.argmax() == 2


def test_a_face_is_round_and_yellow(model: Generator):
    pixels = model.sample(4, prompt="smiling face", seed=2)
    height, width = pixels.shape[2:]
    assert pixels[..., :4, :4].mean() > 0.95  # corners are white
    middle = pixels[..., height // 4 : -height // 4, width // 4 : -width // 4].mean((0, 2, 3))
    assert middle[0] > middle[2] + 0.2 and middle[1] > middle[2] + 0.1  # yellow: red and green, and little blue


def test_sample_without_a_model_takes_it(sfumato: Command, tmp_path: Path):
    out = tmp_path / "out.png"
    result = sfumato("sample", "--prompt", "a red heart", "--prompt", "cat with sunglasses", "-n", "2", "-o", out)
    assert result.status == 0, result.err
    assert Image.open(out).width > 2 * 64


def test_a_label_is_refused_in_one_sentence(sfumato: Command, tmp_path: Path):
    result = sfumato("sample", "--label", "heart", "-o", tmp_path / "out.png")
    assert "--prompt" in result.sentence
    assert not (tmp_path / "out.png").exists()
