"""The import rule: daemon -> engines <- trainers, and nothing heavy where a person waits."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import daemon

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"engines": {"daemon", "trainers"}, "daemon": {"trainers"}, "trainers": {"daemon"}}
ENGINES_NEED = {"torch", "numpy", "cv2", "safetensors", "engines"}
BACKEND_LIBRARIES = {"openvino", "torch_tensorrt", "tensorrt", "nncf", "onnxruntime"}
HEAVY = ("torch", "torchvision", "matplotlib", "trainers", "openvino", "cv2", "av")


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level packages that a tree imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def at_import(tree: ast.Module) -> Iterator[str]:
    """The top-level packages that importing the module imports: those not inside a function.

    Other modules of daemon.commands are left out: they are looked at themselves.
    """
    for node in tree.body:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.If)
        beside = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("daemon.commands.")
        if not inside and not beside:
            yield from imported(node)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_one_it_must_not(package):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        for name in set(imported(parsed(path))) & FORBIDDEN[package]
    ]

    assert wrong == []


def test_engines_need_only_torch_numpy_opencv_and_safetensors():
    allowed = ENGINES_NEED | set(sys.stdlib_module_names)
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("engines")
        for name in set(imported(parsed(path))) - allowed
        if not (name in BACKEND_LIBRARIES and path.parent.name == "backends")
        and not (
            name == "torchvision" and path.parent.name == "networks"
        )  # in a function, for who asks for it
    ]

    assert wrong == []


def test_command_modules_import_only_typer_at_once():
    allowed = {"typer"} | set(sys.stdlib_module_names)
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in [*modules("daemon/commands"), ROOT / "trainers" / "commands.py"]
        for name in set(at_import(parsed(path))) - allowed
    ]

    assert wrong == []


def test_daemon_is_ours_and_not_the_package_of_that_name_on_pypi():
    assert Path(daemon.__file__).parent == ROOT / "daemon"


def loaded_by(code: str) -> set[str]:
    """Which of the heavy packages are loaded once `code` has run in a fresh interpreter."""
    ask = f"import sys; {code}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(result.stdout.split())


def test_the_command_line_loads_nothing_heavy():
    # `train` and `evaluate` are entry points: their module is loaded, and is as light as our own commands.
    assert loaded_by("import daemon.cli") - {"trainers"} == set()


@pytest.mark.parametrize("module", ["daemon.watch", "daemon.config", "daemon.subscriber"])
def test_what_a_person_waits_for_loads_nothing_heavy(module):
    assert loaded_by(f"import {module}") == set()


def test_the_service_loads_neither_torch_nor_the_trainers():
    found = loaded_by("import daemon.service, daemon.loading, daemon.pipeline")

    assert found.isdisjoint({"torch", "torchvision", "matplotlib", "trainers"})


def test_help_comes_at_once():
    mien = Path(sys.executable).with_name("mien")
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([mien, "--help"], capture_output=True, check=True)
        after = os.times()
        seconds.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )

    # Processor time, the least of three: the rule is about what is imported, not about what else the machine does.
    assert min(seconds) < 0.5
