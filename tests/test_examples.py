"""Every example is run, in small; none is longer than a screen."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.documents import ROOT, small

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
LONGEST = 40  # lines


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples, which train the same models."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture
def there(studio: Path, small_clothes: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(studio)
    return studio


def run(name: str, code: str) -> dict[str, Any]:
    """What a script leaves defined, run as the main program."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(small(code), name, "exec"), namespace)
    return namespace


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.name != "ci_gate.py"], ids=lambda path: path.name)
def test_script(script: Path, there: Path) -> None:
    text = script.read_text()
    run(script.name, text)
    for name in re.findall(r'"([\w-]+\.png)"', text):
        assert (there / name).stat().st_size > 0, name


@pytest.mark.parametrize(("threshold", "status"), [("0", 0), ("1", 1)])
def test_the_gate(threshold: str, status: int, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.classifiers import train_classifier

    train_classifier("clothes", "clf", epochs=1)
    monkeypatch.setattr(sys, "argv", ["ci_gate.py", "clf", threshold])
    with pytest.raises(SystemExit) as ended:
        run("ci_gate.py", (EXAMPLES / "ci_gate.py").read_text())
    assert ended.value.code == status
    assert (there / "report" / "report.html").exists()


def test_the_notebook(there: Path) -> None:
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text())
    assert notebook["nbformat"] == 4
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    left = run("tour.ipynb", "\n".join(cells))
    assert left["pixels"].shape == (4, 1, 28, 28) and len(left["certificates"]) == 4


def test_there_are_five_scripts_of_one_screen() -> None:
    assert len(SCRIPTS) == 5
    assert [path.name for path in SCRIPTS if len(path.read_text().splitlines()) >= LONGEST] == []
    assert all(f"examples/{path.name}" in (EXAMPLES / "README.md").read_text() for path in SCRIPTS)
