"""The order of the rooms, names that stay at home, and tests that stand alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "sfumato"
SOURCES = sorted(SRC.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

THEIRS = {("data/hub.py", "_fingerprint")}  # not ours: a data set of `datasets` has it


def test_no_import_runs_upward_and_there_is_no_circle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The contracts are in pyproject.toml; `lint-imports` shows the same."""
    monkeypatch.chdir(ROOT)
    status = lint_imports(cache_dir=None, no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in ("_", "_replace", "_asdict", "_fields")


def at_home(tree: ast.Module) -> set[str]:
    """Names that this file defines: functions, classes, fields, and what it assigns, to itself or to ``self``."""
    names = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def private_names_abroad(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text("utf-8"))
    home = at_home(tree)
    outside = {"self", "cls"} | {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        and not (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sfumato"))
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sfumato"):
            yield from (alias.name for alias in node.names if is_private(alias.name))
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in home:
            holder = node.value.id if isinstance(node.value, ast.Name) else None
            if holder not in outside:
                yield node.attr


def test_no_private_name_crosses_a_file():
    ours = set[str]().union(*(at_home(ast.parse(file.read_text("utf-8"))) for file in SOURCES))
    found = {(file.relative_to(SRC).as_posix(), name) for file in SOURCES for name in private_names_abroad(file)}
    assert {(file, name) for file, name in found if name in ours} - THEIRS == set()


def test_no_test_imports_another():
    """What several need is in tests/helpers."""
    for file in TESTS:
        trees = list(ast.walk(ast.parse(file.read_text("utf-8"))))
        imported = [node.module or "" for node in trees if isinstance(node, ast.ImportFrom)]
        imported += [alias.name for node in trees if isinstance(node, ast.Import) for alias in node.names]
        assert not [name for name in imported if name.startswith(("test_", "conftest", "tests"))], file


def test_each_test_asserts():
    """Itself, or by a function of its file."""
    for file in TESTS:
        tree = ast.parse(file.read_text("utf-8"))
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        idle = [name for name in functions if name.startswith("test_") and not asserts(name, functions)]
        assert idle == [], file


def asserts(name: str, functions: dict[str, ast.FunctionDef], seen: frozenset[str] = frozenset()) -> bool:
    for node in ast.walk(functions[name]):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Attribute) and node.attr.startswith(("raises", "warns", "sentence", "assert_")):
            return True
        helper = node.id if isinstance(node, ast.Name) and node.id in functions.keys() - seen else None
        if helper and asserts(helper, functions, seen | {name, helper}):
            return True
    return False
