"""What README, docs/ and CONTRIBUTING show is run, in order, with small budgets: text and program cannot drift apart."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import Command
from helpers.documents import ROOT, blocks, commands, printed, small
from helpers.folders import write_captioned, write_images

PAGES = sorted((ROOT / "docs").rglob("*.md"))
ENVIRONMENT = {"make", ".", "python", "python3", "pip"}  # these lines prepare an environment: see test_make
# What a person who looks for such a program types into a search box.
TERMS = [
    *("diffusion model", "text to image", "classifier-free guidance", "inpainting", "super-resolution", "checkpoint"),
    *("Fréchet", "bits per dimension", "DDIM", "DPM-Solver", "PyTorch", "adversarial example", "adversarial training"),
    *("AutoAttack", "randomized smoothing", "certified", "purification", "gradient masking"),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all pages: what one of them has trained, the next one finds there."""
    folder = tmp_path_factory.mktemp("documents")
    write_images(folder / "my-folder", ("cat", "dog"), 30, side=16, channels=3)
    write_captioned(folder / "captioned", side=16)
    return folder


@pytest.fixture
def there(workplace: Path, small_clothes: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


def run_blocks(text: str, sfumato: Command) -> dict[str, Any]:
    """What the code of a document defines. A ``text`` block is the error with which the command above it ends."""
    namespace: dict[str, Any] = {}
    found = [*blocks(text), ("", "")]
    for (language, block), (following, expected) in pairwise(found):
        assert language in ("bash", "python", "text"), f"only these are tested: use no {language!r}"
        if language == "python":
            exec(compile(small(block), "document", "exec"), namespace)
        elif language == "bash" and following == "text":
            assert_refused(block, expected, sfumato)
        elif language == "bash":
            run_commands(block, sfumato)
    return namespace


def assert_refused(block: str, expected: str, sfumato: Command) -> None:
    """The command ends with the error that the page shows, which may end in an ellipsis."""
    (words,) = printed(block)
    sentence, shown = sfumato(*words[1:]).sentence, " ".join(expected.split())
    assert sentence.startswith(shown[:-3]) if shown.endswith("...") else sentence == shown, sentence


def run_commands(block: str, sfumato: Command) -> None:
    for words in commands(block):
        if words[0] in ENVIRONMENT:
            continue
        assert words[0] == "sfumato", words
        result = sfumato(*words[1:])
        assert result.status == 0, f"{shlex.join(words)}: {result.err}"
        for option in {"-o", "--out"} & set(words):
            assert Path(words[words.index(option) + 1]).exists(), words


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", *(str(page.relative_to(ROOT)) for page in PAGES)])
def test_page(page: str, sfumato: Command, there: Path) -> None:
    run_blocks((ROOT / page).read_text(), sfumato)


def test_readme_is_one_page_of_the_words_of_the_field() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    plain = " ".join(text.lower().split())
    assert [term for term in TERMS if term.lower() not in plain] == []
    for target in re.findall(r"\]\(([^)#:]+)[)#]", text):
        assert (ROOT / target).exists(), target


def test_the_numbers_of_the_readme_are_those_of_the_results() -> None:
    rows = (ROOT / "README.md").read_text().split("| question |")[1].split("\n\n")[0].splitlines()[2:]
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    for row in rows:
        _, _, ours, peer, command, _ = row.split("|")
        numbers = re.findall(r"[\d.,]*\d%?", ours + peer)
        assert numbers and [number for number in numbers if number not in results] == [], row
        assert re.search(rf"`{command.strip(' `')}[ `]", results), row


def test_the_guides_name_what_there_is() -> None:
    from sfumato.attacks import ATTACKS
    from sfumato.data import SOURCES
    from sfumato.defences.hardening.adversarial_training import METHODS
    from sfumato.ladder import WEIGHTS
    from sfumato.samplers import SAMPLERS

    for page, head, names in (
        ("train", "| `--sampler` | |", set(SAMPLERS)),
        ("audit", "| `--attack` | |", set(ATTACKS)),
        ("harden-and-certify", "| `--method` | |", set(METHODS)),
    ):
        assert first_column((ROOT / "docs" / "guides" / f"{page}.md").read_text(), head) == names, page
    mathematics = (ROOT / "docs" / "mathematics.md").read_text()
    assert first_column(mathematics, "| `--set weights=` | weights | source |") == set(WEIGHTS)
    assert set(SOURCES) <= first_column((ROOT / "docs" / "guides" / "train.md").read_text(), "| source | |")


def first_column(text: str, head: str) -> set[str]:
    """The names in the first column of the table with this head."""
    rows = text.split(head)[1].split("\n\n")[0].splitlines()[2:]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_what_a_run_folder_holds(sfumato: Command, there: Path) -> None:
    assert sfumato("train", "--data", "digits", "--steps", "2", "--out", "runs/held").status == 0
    named = first_column((ROOT / "docs" / "guides" / "train.md").read_text(), "The run folder holds\n\n| | |")
    held = {path.name + "/" * path.is_dir() for path in Path("runs/held").iterdir()}
    assert named - held <= (set() if importlib.util.find_spec("tensorboard") else {"tensorboard/"})
    assert held <= named


@pytest.fixture
def extended() -> Iterator[list[set[str]]]:
    """What a document has entered into the registries of samplers, networks, data sets and attacks; taken out again."""
    from sfumato.attacks import ATTACKS
    from sfumato.data import SOURCES
    from sfumato.denoisers import NETWORKS
    from sfumato.samplers import SAMPLERS

    before = [(registry, set(registry)) for registry in (SAMPLERS, NETWORKS, SOURCES, ATTACKS)]
    new: list[set[str]] = []
    try:
        yield new
        new.extend(set(registry) - known for registry, known in before)
    finally:
        for registry, known in before:
            for name in set(registry) - known:
                del registry[name]
    assert new == [{"midpoint"}, {"plain"}, {"stripes"}, {"margin-step"}]


def test_contributing(sfumato: Command, inside: Path, extended: list[set[str]]) -> None:
    from sfumato.attacks import ATTACKS, verified
    from sfumato.classifiers import load_classifier
    from sfumato.data import load
    from sfumato.generator import Generator

    assert sfumato("train", "--data", "digits", "--steps", "2", "--out", "runs/digits").status == 0
    defined = run_blocks((ROOT / "CONTRIBUTING.md").read_text(), sfumato)
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
    assert train.fingerprint() != test.fingerprint() and train.labels is not None
    for image, label in zip(train.images[:50, ..., 0], train.labels[:50], strict=True):
        along = image if train.classes[label] == "across" else image.T
        assert (along == along[:, :1]).all()
    # The attack fools more than random signs of its size do, and keeps to its ball.
    digits, classifier = load("digits", split="test"), load_classifier("digits-classifier")
    assert digits.labels is not None
    x, y = digits.pixels(slice(100)), torch.tensor(digits.labels[:100])
    noise = 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
    found = verified(classifier, x, ATTACKS["margin-step"](classifier, x, y, eps=0.3), y, eps=0.3)
    assert found.success.sum() > verified(classifier, x, (x + noise).clamp(0, 1), y).success.sum() + 10
    assert found.in_ball.all() and found.in_box.all()
    # The training learns, and resumes where it stopped.
    assert len(defined["losses"]) == 200 and defined["losses"][-1] < defined["losses"][0] / 2


@pytest.fixture
def fresh_checkout(tmp_path: Path) -> Path:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("install", "pip install"),
        ("demo", "sfumato demo"),
        ("test", "pytest"),
        ("lint", "pyright"),
        ("docs", "mkdocs build --strict"),
    ],
)
def test_make(target: str, words: str, fresh_checkout: Path) -> None:
    """On a fresh checkout each target first makes .venv, torch before all else."""
    plan = subprocess.run(["make", "-n", target], cwd=fresh_checkout, capture_output=True, text=True, check=True).stdout
    assert words in plan
    assert plan.index("-m venv") < plan.index("pip install --quiet torch==") < plan.index("--editable")


def test_make_refuses_an_old_python(fresh_checkout: Path) -> None:
    ended = subprocess.run(["make", "install", "PYTHON=false"], cwd=fresh_checkout, capture_output=True, text=True)
    assert ended.returncode != 0 and "3.11" in ended.stderr
    assert not (fresh_checkout / ".venv").exists()


def test_continuous_integration_calls_make() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in text and all(f"make {target}\n" in text for target in ("lint", "test", "docs"))
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
