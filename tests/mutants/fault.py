"""A fault: the code that it changes, and the tests that must fail. Both are identified by name: files may move."""

import ast
import functools
import re
from pathlib import Path
from typing import NamedTuple

CODE = ("bt_jax", "configs")  # folders in which faults are planted
TESTS = "tests"


class StaleError(Exception):
    """The code of a fault, or one of its tests, does not exist."""


class Fault(NamedTuple):
    """One small mistake.

    Attributes:
      name: short and unique.
      where: qualified name of a function, method or class of `CODE`, or of a variable of a module.
      old: text in that definition. It must occur exactly once in all definitions of that name; white space may differ.
      new: the text that replaces it.
      tests: names of test functions, "test_x" or "test_x[case]"; at least one of them must fail.
    """

    name: str
    where: str
    old: str
    new: str
    tests: tuple[str, ...]


def planted(fault: Fault, root: Path) -> tuple[Path, str]:
    """The file below `root` that the fault changes, and its text with the fault.

    Raises:
      StaleError: the text of the fault does not occur exactly once, or its change gives invalid Python.
    """
    pattern = re.compile(r"\s+".join(map(re.escape, fault.old.split())))
    found = []
    for path in _files(root, CODE):
        text, definitions = _read(path)
        for start, stop in definitions.get(fault.where, ()):
            found += [(path, match, start, stop) for match in pattern.finditer(text, start, stop)]
    if len(found) != 1:
        raise StaleError(f"{fault.name}: {fault.old!r} is {len(found)} times in {fault.where}, not once")
    path, match, start, stop = found[0]
    text = _read(path)[0]
    changed = text[: match.start()] + fault.new + text[match.end() :]
    try:  # to parse the definition alone, which is faster; an indented definition needs a block around it
        ast.parse(("if True:\n" if text[start].isspace() else "") + changed[start : stop + len(changed) - len(text)])
    except SyntaxError as error:
        raise StaleError(f"{fault.name}: with it, {path.name} is not Python: {error}") from None
    return path, changed


def nodes(fault: Fault, root: Path) -> list[str]:
    """The tests of a fault as arguments of pytest, such as "tests/test_x.py::test_y".

    Raises:
      StaleError: there is no test of that name.
    """
    found = []
    for test in fault.tests:
        function = test.partition("[")[0]
        files = [path for path in _files(root, (TESTS,)) if function in _read(path)[1]]
        if not files:
            raise StaleError(f"{fault.name}: there is no test {function}")
        found += [f"{path.relative_to(root).as_posix()}::{test}" for path in files]
    return found


@functools.cache
def _files(root: Path, folders: tuple[str, ...]) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


@functools.cache
def _read(path: Path) -> tuple[str, dict[str, list[tuple[int, int]]]]:
    """The text of a file, and the ranges of its definitions, {qualified name: [(start, stop)]}, in characters."""
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
                names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
            for name in names:
                first = min([child.lineno, *(each.lineno for each in getattr(child, "decorator_list", ()))])
                places.setdefault(prefix + name, []).append((lines[first - 1], lines[child.end_lineno]))
            inside = f"{prefix}{names[0]}." if hasattr(child, "body") and names else prefix
            visit(child, inside)

    visit(ast.parse(text), "")
    return text, places
