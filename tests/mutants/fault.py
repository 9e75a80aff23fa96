"""A fault: its place in the code and the tests that must fail on it. Names identify both, so that files may move."""

import ast
import functools
import re
from pathlib import Path
from typing import NamedTuple

CODE = ("bt_jax",)  # folders with the code
TESTS = "tests"


class StaleError(Exception):
    """A fault or one of its tests does not exist, because the code or the tests have changed."""


class Fault(NamedTuple):
    """One small mistake in the code.

    Attributes:
      name: short and unique.
      where: qualified name of a function, method or class of `CODE`, or of a variable of a module.
      old: text to replace. All definitions of that name together must contain it exactly once. White space may differ.
      new: its replacement.
      tests: names of test functions, "test_x" or "test_x[case]"; at least one of them must fail.
    """

    name: str
    where: str
    old: str
    new: str
    tests: tuple[str, ...]


def planted(fault: Fault, root: Path) -> tuple[Path, str]:
    """The file to change below `root`, and its text with the fault.

    Raises:
      StaleError: there is no such place, or there are several.
    """
    pattern = re.compile(r"\s+".join(map(re.escape, fault.old.split())))
    matches = []
    for path in _files(root, CODE):
        text, definitions = _read(path)
        for start, stop in definitions.get(fault.where, ()):
            matches += [(path, match, start, stop) for match in pattern.finditer(text, start, stop)]
    if len(matches) != 1:
        raise StaleError(f"{fault.name}: {fault.where} contains {fault.old!r} {len(matches)} times, not once")
    path, match, start, stop = matches[0]
    text = _read(path)[0]
    changed = text[: match.start()] + fault.new + text[match.end() :]
    try:  # parses the definition only, to save time; an indented definition needs a line before it
        ast.parse(("if True:\n" if text[start].isspace() else "") + changed[start : stop + len(changed) - len(text)])
    except SyntaxError as error:
        raise StaleError(f"{fault.name}: the fault makes {path.name} invalid Python: {error}") from None
    return path, changed


def nodes(fault: Fault, root: Path) -> list[str]:
    """The pytest ids of the tests, such as "tests/test_x.py::test_y".

    Raises:
      StaleError: there is no test of that name.
    """
    ids = []
    for test in fault.tests:
        function = test.partition("[")[0]
        files = [path for path in _files(root, (TESTS,)) if function in _read(path)[1]]
        if not files:
            raise StaleError(f"{fault.name}: there is no test {function}")
        ids += [f"{path.relative_to(root).as_posix()}::{test}" for path in files]
    return ids


@functools.cache
def _files(root: Path, folders: tuple[str, ...]) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


@functools.cache
def _read(path: Path) -> tuple[str, dict[str, list[tuple[int, int]]]]:
    """A file's text and the places of its definitions: {qualified name: [(start, stop)]}, in characters."""
    text = path.read_text()
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    places: dict[str, list[tuple[int, int]]] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            names = []
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = [child.name]
            elif isinstance(child, ast.Assign | ast.AnnAssign) and isinstance(node, ast.Module | ast.ClassDef):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
            for name in names:
                decorators = getattr(child, "decorator_list", ())
                first = min([child.lineno, *(decorator.lineno for decorator in decorators)])
                places.setdefault(prefix + name, []).append((lines[first - 1], lines[child.end_lineno]))
            inside = f"{prefix}{names[0]}." if hasattr(child, "body") and names else prefix
            visit(child, inside)

    visit(ast.parse(text), "")
    return text, places
