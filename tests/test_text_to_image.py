"""From captions to a model to pictures, with a tiny language model: learned, drawn, resumed, refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.commands import Command
from helpers.folders import COLOURS, write_captioned
from helpers.oracles import TINY
from helpers.text_models import save_bert
from sfumato.core.errors import InputError
from sfumato.data import ImageSet
from sfumato.generator import Generator
from sfumato.guidance import Guidance
from sfumato.training import TrainingRequest, train, training_steps


def squares(count: int = 24) -> ImageSet:
    """Plain 8x8 squares, whose caption names the colour."""
    names = list(COLOURS)
    images = np.stack([np.full((8, 8, 3), COLOURS[names[i % 3]], np.uint8) for i in range(count)])
    captions = tuple((f"a {names[i % 3]} square", names[i % 3]) for i in range(count))
    return ImageSet(images, None, (), "squares", "train", captions)


def settings(text: str | Path, **changes: str) -> dict[str, str]:
    return {**TINY, "text": str(text), "batch": "8", **changes}


@pytest.fixture(scope="module")
def run(bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training on coloured squares. Not to be written to."""
    folder = tmp_path_factory.mktemp("squares") / "run"
    train(squares(), folder, steps=150, settings=settings(bert))
    return folder


# -- what is learned ---------------------------------------------------------------------------------------------------


def test_a_prompt_gives_what_it_says(run: Path):
    generator = Generator.from_pretrained(run, "cpu")
    names = list(COLOURS)
    asked = [f"a {name} square" for name in names] + names
    pixels = generator.sample(6, prompt=asked, seed=3)  # (6, 3, 8, 8)
    wanted = torch.tensor([COLOURS[name] for name in names * 2]) / 255
    distances = torch.cdist(pixels.mean((2, 3)), wanted[:3])
    assert distances.argmin(1).tolist() == [0, 1, 2, 0, 1, 2], distances


def test_pictures_do_not_depend_on_the_batch(run: Path):
    generator = Generator.from_pretrained(run, "cpu")
    asked = ["a red square", "the small blue cat and the green sun", "green", "red", "blue"]
    whole = generator.sample(5, prompt=asked, seed=5)
    torch.testing.assert_close(generator.sample(5, prompt=asked, seed=5, batch_size=2), whole, atol=1e-4, rtol=1e-4)
    assert torch.equal(generator.sample(5, prompt=asked, seed=5), whole)


def test_prompts_are_guided_unless_told_otherwise(run: Path):
    generator = Generator.from_pretrained(run, "cpu")
    usual = generator.sample(2, prompt="red")
    assert torch.equal(usual, generator.sample(2, prompt="red", guidance=generator.default_guidance))
    assert not torch.equal(usual, generator.sample(2, prompt="red", guidance=1.0))
    # Without a prompt there is nothing to press: guidance 1 is what is drawn.
    assert torch.equal(generator.sample(2), generator.sample(2, guidance=Guidance()))


def test_the_saved_model_needs_nothing_else(run: Path, tmp_path: Path):
    generator = Generator.from_pretrained(run, "cpu")
    generator.save(tmp_path / "whole")
    generator.save(tmp_path / "half", half=True)
    expected = generator.sample(2, prompt="red")
    assert torch.equal(Generator.from_pretrained(tmp_path / "whole", "cpu").sample(2, prompt="red"), expected)
    halved = Generator.from_pretrained(tmp_path / "half", "cpu").sample(2, prompt="red")
    torch.testing.assert_close(halved, expected, atol=0.02, rtol=0)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.6 * sizes[1]


# -- stopping and going on ---------------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_to_the_same_weights(bert: str, tmp_path: Path):
    chosen = settings(bert)
    train(squares(), tmp_path / "whole", steps=6, settings=chosen)
    steps = training_steps(TrainingRequest(squares(), tmp_path / "stopped", steps=6, settings=chosen))
    for _ in range(3):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    train(squares(), tmp_path / "stopped", steps=6, settings=chosen)
    whole, stopped = (Generator.from_pretrained(tmp_path / name, "cpu") for name in ("whole", "stopped"))
    for name, value in whole.denoiser.state_dict().items():
        assert torch.equal(value, stopped.denoiser.state_dict()[name]), name


def test_another_bert_is_another_run(bert: str, tmp_path: Path):
    train(squares(), tmp_path / "run", steps=1, settings=settings(bert))
    other = save_bert(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="another run"):
        train(squares(), tmp_path / "run", steps=2, settings=settings(other))
    changed = save_bert(tmp_path / "changed")
    chosen = settings(changed)
    train(squares(), tmp_path / "again", steps=1, settings=chosen)
    save_bert(changed, seed=2)  # the same folder, other weights
    from sfumato.conditions.text import find_encoder

    find_encoder.cache_clear()
    with pytest.raises(InputError, match="another run"):
        train(squares(), tmp_path / "again", steps=2, settings=chosen)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"prompt": "  "}, "empty"),
        ({"prompt": ["red", "blue"]}, "2 prompts were given for 3"),
        ({"prompt": "red", "label": "red"}, "give one of them"),
        ({"label": "red"}, "--prompt"),
    ],
)
def test_impossible_requests_are_refused(run: Path, asked: dict[str, object], sentence: str):
    with pytest.raises(InputError, match=sentence):
        Generator.from_pretrained(run, "cpu").sample(3, **asked)  # type: ignore[arg-type]


def test_a_prompt_to_a_model_of_labels_is_refused(digits_run: Path, sfumato: Command, inside: Path):
    result = sfumato("sample", digits_run, "--prompt", "a three", "-o", "a.png")
    assert "trained with labels" in result.sentence and not (inside / "a.png").exists()


def test_a_model_whose_bert_is_gone_says_so(run: Path, tmp_path: Path):
    generator = Generator.from_pretrained(run, "cpu")
    for text, sentence in ((str(tmp_path / "gone"), "no language model"), ("minilm", "width 384")):
        changed = Generator(generator.denoiser, (), generator.config.with_settings({"text": text}))
        with pytest.raises(InputError, match=sentence):
            changed.sample(1, prompt="red")


# -- the command line --------------------------------------------------------------------------------------------------


def test_commands(sfumato: Command, inside: Path, bert: str):
    write_captioned(inside / "captioned")
    words = [f"--set={key}={value}" for key, value in settings(bert).items()]
    result = sfumato("train", "--data", "captioned", "--out", "run", "--steps", 2, *words)
    assert result.status == 0 and "--prompt 'a " in result.out, result
    assert sfumato("sample", "run", "--prompt", "red", "--prompt", "a blue square", "-n", 3, "-o", "a.png").status == 0
    assert sfumato("sample", "run", "--prompt", "red", "-n", 2, "-o", "many/").status == 0
    assert sorted(path.name for path in (inside / "many").iterdir()) == ["00000-red.png", "00001-red.png"]
    assert sfumato("sample", "run", "--prompt", "red", "-n", 2, "-o", "two.npz").status == 0
    assert np.load("two.npz", allow_pickle=False)["captions"].tolist() == ["red", "red"]
    assert sfumato("sample", "run", "-n", 2, "-o", "anything.png").status == 0
    assert sfumato("film", "run", "--prompt", "red", "-o", "film.png").status == 0
    assert sfumato("export", "run", "-o", "shared").status == 0
    assert sfumato("sample", "shared", "--prompt", "red", "-n", 1, "-o", "b.png").status == 0
    assert "holds a model already" in sfumato("export", "run", "-o", "shared").sentence
    assert (inside / "a.png").exists() and (inside / "anything.png").exists() and (inside / "film.png").exists()
