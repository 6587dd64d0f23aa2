"""The shape of the house: sizes, names, floors that import-linter cannot see."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "evenly"
FILES = sorted(SOURCE.rglob("*.py"))
KERNELS = sorted((ROOT / "csrc").rglob("*.[ch]pp"))
FILE_LINES, FUNCTION_LINES = 300, 50
# What may be longer, and why.
LONGER_FILES: dict[str, str] = {
    "cli.py": "one function per command, options and examples included",
    "nn/functional.py": "five functionals with torch's signatures; two thirds are signatures and docstrings",
}
LONGER_FUNCTIONS: dict[str, str] = {}


def relative(path: Path) -> str:
    """A file's name inside the package."""
    return path.relative_to(SOURCE).as_posix()


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Name and number of lines of each function, without its docstring and the classes inside it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            lines -= sum((c.end_lineno or 0) - c.lineno + 1 for c in node.body if isinstance(c, ast.ClassDef))
            yield node.name, lines


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_are_short(path: Path) -> None:
    """A file of more than 300 lines, or a function of more than 50, has a reason written down here."""
    text = path.read_text("utf-8")

    assert relative(path) in LONGER_FILES or len(text.splitlines()) <= FILE_LINES
    for name, lines in functions(ast.parse(text)):
        assert f"{relative(path)}:{name}" in LONGER_FUNCTIONS or lines <= FUNCTION_LINES, (name, lines)


def bodies(text: str) -> Iterator[tuple[str, int]]:
    """First line and number of lines of each function and constructor of formatted C++, lambdas inside included."""
    lines = text.splitlines()
    for end, line in enumerate(lines):
        if not re.fullmatch(r" *\};?", line):
            continue
        indent = line[: len(line) - len(line.lstrip())]
        start = next(i for i in range(end - 1, -1, -1) if re.match(indent + r"[^\s#}]", lines[i]) or i == 0)
        while start > 0 and (lines[start].startswith(indent + "    ") or re.match(indent + r"[:,]", lines[start])):
            start -= 1
        head = " ".join(lines[start:end])
        scope = re.match(rf"{indent}(struct|class|enum|namespace|union|public|private|using|switch|extern)\b", head)
        if "(" in head.split("{")[0] and not scope:
            yield lines[start].strip(), end - start + 1


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_files_and_functions_of_the_kernels_are_short(path: Path) -> None:
    """The limits hold for C++ too."""
    text = path.read_text("utf-8")

    assert len(text.splitlines()) <= FILE_LINES
    for name, lines in bodies(text):
        assert lines <= FUNCTION_LINES, (name, lines)


def test_the_length_of_a_function_of_the_kernels_is_found() -> None:
    """A long function, a long method and a long constructor are seen; a long class of short ones is not."""
    body = "    int n = 0;\n" * 60
    short = "    int h() const { return 0; }\n" * 60
    constructor = f"    S(int a)\n        : g(a) {{\n{body.replace('    ', ' ' * 8)}    }}\n"
    text = f"int f(int a) {{\n{body}}}\n\nstruct S {{\n    int g;\n{constructor}{short}}};\n"

    assert [lines for _, lines in bodies(text) if lines > FUNCTION_LINES] == [62, 63]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_names_say_something(path: Path) -> None:
    """No file is called utils, common, base or helpers."""
    assert not {"utils", "util", "common", "base", "helpers", "misc"} & {path.stem, *path.parent.parts[-2:]}


@pytest.mark.parametrize("path", sorted((SOURCE / "core").glob("*.py")), ids=relative)
def test_core_imports_the_standard_library_alone(path: Path) -> None:
    """Whatever its name: what core imports ships with Python or is core itself."""
    for module in imported(path):
        top = module.split(".")[0]
        assert module.startswith("evenly.core") or top in sys.stdlib_module_names, module


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_kernels_and_triton_have_one_door_each(path: Path) -> None:
    """Only `backends/cpu.py` imports the compiled module, only `backends/triton.py` imports triton."""
    for module in imported(path):
        assert "_cpu" not in module.split(".") or relative(path) == "backends/cpu.py"
        assert module.split(".")[0] != "triton" or relative(path) == "backends/triton.py"


def imported(path: Path) -> Iterator[str]:
    """The dotted name of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_tests_mirror_the_source() -> None:
    """Every folder of tests is a folder of the source (but for three), and every floor has tests."""
    tested = {p.parent.relative_to(ROOT / "tests").as_posix() for p in (ROOT / "tests").rglob("test_*.py")}
    source = {p.parent.relative_to(SOURCE).as_posix() for p in FILES}

    assert tested - source - {"libraries", "matrix", "soak"} == set()
    assert {"core", "backends", "nn", "tools", "bench", "keras", "lab"} <= tested


def test_every_example_has_a_test() -> None:
    """Each script of examples/ is named in some test, which runs it."""
    tests = "".join(p.read_text("utf-8") for p in (ROOT / "tests").rglob("test_*.py"))

    assert [p.name for p in sorted((ROOT / "examples").glob("*.py")) if p.stem not in tests] == []


def test_type_marker_and_licence_are_there() -> None:
    """Type checkers find `py.typed`; the licence is Apache's, whole."""
    assert (SOURCE / "py.typed").exists()
    licence = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_project_promises() -> None:
    """Python 3.11, torch 2.10, four base dependencies, and the extras that the documentation names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    assert project["requires-python"] == ">=3.11"
    assert "torch>=2.10" in project["dependencies"]
    assert {d.split(">")[0] for d in project["dependencies"]} == {"torch", "numpy", "click", "rich"}
    assert {"lab", "keras", "data", "dev"} <= set(project["optional-dependencies"])
    assert project["license"] == "Apache-2.0"


def test_every_exception_is_still_needed() -> None:
    """A reason written down above for a file that became short, or is gone, is taken out."""
    for name in LONGER_FILES:
        assert len((SOURCE / name).read_text("utf-8").splitlines()) > FILE_LINES, name
    for name in LONGER_FUNCTIONS:
        path, function = name.split(":")
        longest = dict(functions(ast.parse((SOURCE / path).read_text("utf-8"))))
        assert longest[function] > FUNCTION_LINES, name
