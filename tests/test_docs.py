"""What the README and CONTRIBUTING show is run, in order, with small budgets: text and program cannot drift apart."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import Command
from helpers.folders import write_captioned, write_images

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What makes a budget small. Everything else of a command runs as it is printed.
SMALL = (
    (r"(--recipe \w+) --minutes 15\b", r"\1 --steps 4"),
    (r"--minutes 15\b", "--steps 2"),
    (r"\bminutes=15\b", "steps=2"),
    (r"-n 64\b", "-n 4"),
    (r"-n 100\b", "-n 4"),
    (r"-n 2000\b", "-n 24"),
    (r"(classifier train .*)", r"\1 --epochs 1"),
    (r"(sfumato attack .*)", r"\1 -n 4"),
    (r"(sfumato audit .*)", r"\1 -n 4"),
    (r"-n 500\b", "-n 4"),
    (r"(sfumato harden .*)", r"\1 --epochs 1 -n 8"),
    (r"(--purify \S+)", r"\1 --purified 1"),
    (r"(sfumato certify .*)", r"\1 --samples 2000 --attacked 2"),
)


def blocks(name: str) -> list[tuple[str, str]]:
    """The (language, text) of every fenced block of a document."""
    found = BLOCK.findall((ROOT / name).read_text())
    assert {language for language, _ in found} == {"bash", "python"}, "only these are tested: use no others"
    return found


def small(text: str) -> str:
    for pattern, replacement in SMALL:
        text = re.sub(pattern, replacement, text)
    return text


def commands(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        words = shlex.split(small(line))
        if words[:2] == ["sfumato", "train"] and not {"--steps", "--minutes", "--images"} & set(words):
            words += ["--steps", "2"]
        if words[:2] == ["sfumato", "evaluate"] and "-n" not in words:
            words += ["-n", "24"]
        yield words


def run_blocks(found: list[tuple[str, str]], sfumato: Command) -> None:
    namespace: dict[str, Any] = {}
    for language, text in found:
        if language == "python":
            exec(compile(small(text), "document", "exec"), namespace)
            continue
        for words in commands(text):
            if words[0] == "make":  # see test_make
                continue
            assert words[0] == "sfumato", words
            result = sfumato(*words[1:])
            assert result.status == 0, f"{shlex.join(words)}: {result.err}"
            if "-o" in words:
                assert Path(words[words.index("-o") + 1]).exists(), words


def test_readme(sfumato: Command, inside: Path, small_fashion: Path) -> None:
    write_images(inside / "my-folder", ("cat", "dog"), 30, side=16, channels=3)
    write_captioned(inside / "captioned", side=16)
    run_blocks(blocks("README.md"), sfumato)
    # What it says is in a run folder is there, and nothing else.
    named = re.findall(r"^\| `([\w.]+)/?` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    expected = {name for name in named if (inside / "runs" / "fashion" / name).exists()}
    there = {path.name for path in (inside / "runs" / "fashion").iterdir()}
    assert there == expected
    assert (
        set(named) - there
        <= ({"tensorboard"} if importlib.util.find_spec("tensorboard") is None else set()) | sampler_names()
    )


def sampler_names() -> set[str]:
    from sfumato.samplers import SAMPLERS

    return set(SAMPLERS)


def test_readme_names_what_there_is() -> None:
    from sfumato.data import SOURCES

    text = (ROOT / "README.md").read_text()
    listed = text.split("| `--sampler` | |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", listed, re.MULTILINE)) == sampler_names()
    assert all(f"`{name}`" in text for name in SOURCES)
    assert len([line for line in re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0].splitlines() if line]) < 10


def test_contributing(sfumato: Command, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.attacks import ATTACKS, verified
    from sfumato.classifiers import load_classifier
    from sfumato.data import SOURCES, load
    from sfumato.denoisers import NETWORKS
    from sfumato.generator import Generator
    from sfumato.samplers import SAMPLERS

    assert sfumato("train", "--data", "digits", "--steps", "2", "--out", "runs/digits").status == 0
    before = [(registry, set(registry)) for registry in (SAMPLERS, NETWORKS, SOURCES, ATTACKS)]
    try:
        run_blocks(blocks("CONTRIBUTING.md"), sfumato)
        assert [set(registry) - known for registry, known in before] == [{"midpoint"}, {"plain"}, {"stripes"}, {"push"}]
        # The sampler is one: its own pictures, the same again for the same seed.
        generator = Generator.from_pretrained("runs/digits")
        drawn = generator.sample(2, sampler="midpoint", steps=8)
        assert torch.equal(drawn, generator.sample(2, sampler="midpoint", steps=8))
        assert torch.isfinite(drawn).all() and not torch.equal(drawn, generator.sample(2, sampler="euler", steps=8))
        # The network is the one that was asked for, and its option was taken.
        plain = Generator.from_pretrained("runs/plain")
        assert plain.config.network == "plain" and plain.config.options["width"] == 32
        assert torch.isfinite(plain.sample(2, "3")).all()
        # The data set has both splits, and labels that are true.
        train, test = load("stripes"), load("stripes", split="test")
        assert train.fingerprint() != test.fingerprint()
        for image, label in zip(
            train.images[:50, ..., 0], train.labels[:50] if train.labels is not None else (), strict=True
        ):
            along = image if train.classes[label] == "across" else image.T
            assert (along == along[:, :1]).all()
        # The attack fools more than random signs of its size do, and keeps to its ball.
        digits, classifier = load("digits", split="test"), load_classifier("digits-classifier")
        assert digits.labels is not None
        x, y = digits.pixels(slice(100)), torch.tensor(digits.labels[:100])
        noise = 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
        found = verified(classifier, x, ATTACKS["push"](classifier, x, y, eps=0.3), y, eps=0.3)
        assert found.success.sum() > verified(classifier, x, (x + noise).clamp(0, 1), y).success.sum() + 10
        assert found.in_ball.all() and found.in_box.all()
    finally:
        for registry, known in before:
            for name in set(registry) - known:
                del registry[name]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("install", "pip install"),
        ("demo", "sfumato demo"),
        ("test", "pytest"),
        ("lint", "pyright"),
    ],
)
def test_make(target: str, words: str, tmp_path: Path) -> None:
    """On a fresh checkout each target first makes .venv, torch before all else."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    plan = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert words in plan
    assert plan.index("-m venv") < plan.index("pip install --quiet torch==") < plan.index("--editable")


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_refuses_an_old_python(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ended = subprocess.run(["make", "install", "PYTHON=false"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode != 0 and "3.11" in ended.stderr
    assert not (tmp_path / ".venv").exists()


def test_continuous_integration_calls_make() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in text and "make lint" in text and "make test" in text
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
