"""The wheel works where nothing but the wheel and what it requires is installed.

The environment is new and has no access to this one's packages. Third-party packages are not downloaded again: those that
the wheel's metadata requires, and what these require in turn, are linked into it, and pip then installs the wheel with
no index and so checks each version. That shows that the declared requirements suffice (a package of the development
extras, or the source tree, would not be found) and that the wheel holds all its data. It does not show that a registry
still offers these versions.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
DATA = ["py.typed", "audit/templates/report.html", "lecture/templates/lecture.html", "packaged/emoji/model.safetensors"]
DATA += ["packaged/clothes/clothes.npz", "packaged/clothes/LICENSE", "packaged/clothes/README.md"]


def run(*words: object, folder: Path) -> str:
    """Standard output of a command that must succeed, run in ``folder`` and without the hints of this environment."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    ended = subprocess.run([str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended.stdout


def required(wheel: Path) -> dict[str, metadata.Distribution]:
    """All that the wheel needs, without its extras, by name, as installed in this environment."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    todo = re.findall(r"^Requires-Dist: (.*)$", text, re.MULTILINE)
    found: dict[str, metadata.Distribution] = {}
    while todo:
        one = Requirement(todo.pop())
        if one.name not in found and (one.marker is None or one.marker.evaluate({"extra": ""})):
            found[one.name] = metadata.distribution(one.name)
            todo += found[one.name].requires or []
    return found


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(source archive, wheel built from it)."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def binaries(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of a new environment are that holds the wheel and its requirements."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", folder=folder)
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip())
    for one in required(archives[1]).values():
        for top in {file.parts[0] for file in one.files or () if file.parts[0] != ".."}:
            if not (packages / top).exists():
                (packages / top).symlink_to(str(one.locate_file(top)))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", archives[1], folder=folder)
    return python.parent


def test_what_is_in_the_archives(archives: tuple[Path, Path]) -> None:
    source, wheel = archives
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert names >= {f"sfumato/{name}" for name in DATA}
    assert all(name.startswith("sfumato") for name in names)  # no tests, no tools
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("LICENSE", "README.md", "CONTRIBUTING.md", "Makefile", "tests/conftest.py", "tools/make_clothes.py"):
        assert name in names
    assert not any("__pycache__" in name or name.startswith((".", "runs", "demo")) for name in names)
    run(sys.executable, "-m", "twine", "check", "--strict", *archives, folder=ROOT)


def test_it_is_installed_alone(binaries: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util, json, sfumato; from importlib import metadata; "
        "print(json.dumps([sfumato.__file__, sfumato.__version__, metadata.version('sfumato'), "
        "[n for n in ('pytest', 'hypothesis', 'diffusers', 'datasets') if importlib.util.find_spec(n)]]))"
    )
    file, version, installed, extras = json.loads(run(binaries / "python", "-c", code, folder=tmp_path))
    assert Path(file).is_relative_to(binaries.parent) and version == installed and not extras


def test_it_samples_and_audits(binaries: Path, tmp_path: Path) -> None:
    sfumato = binaries / "sfumato"
    run(sfumato, "sample", "--prompt", "a red heart", "-n", 1, "--steps", 3, "-o", "heart.png", folder=tmp_path)
    assert (tmp_path / "heart.png").stat().st_size > 1000
    train = "classifier train --data clothes --minutes 0.02 --out clf"
    run(sfumato, *train.split(), folder=tmp_path)
    audit = "audit clf --data clothes --norm Linf --eps 0.1 -n 8 -o report --json"
    report = json.loads(run(sfumato, *audit.split(), folder=tmp_path))
    assert report and (tmp_path / "report" / "report.html").stat().st_size > 10_000
