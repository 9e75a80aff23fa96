"""Layout rules, checked in the sources: imports, packages, random keys, config keys, lengths, versions.

Lists of exceptions may only shrink: an entry that is not needed fails its test.
"""

import ast
import configparser
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import jax
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from setuptools import Distribution

import bt_jax
from bt_jax.config import keys
from tests.support.paths import ROOT

FILES = sorted((ROOT / "bt_jax").rglob("*.py"))

DYNAMIC = ("import_module", "__import__", "run_module")  # calls that import a module by a computed name
TENSORFLOW = ("bt_jax/data/",)  # the folders that may import it
TORCH = ("bt_jax/weights/",)
LIGHT = ("bt_jax", "bt_jax.prepare", "bt_jax.config", "bt_jax.augment.recipes")  # modules that load no framework

# (file, function) whose random key is not the first argument.
KEY_LATER = {
    ("bt_jax/evals/correlation.py", "embeddings"),
    ("bt_jax/evals/spectrum.py", "accumulate"),
    ("bt_jax/evals/spectrum.py", "measure"),
}
LONGEST = 400  # most lines of a file
# Names that a message may start with, although they have no capital.
PROPER_NAME = re.compile(r"\w+=|config\.|init_from\b|kNN\b|scikit-learn\b")


def name_of(path: Path) -> str:
    """The path from the repository's root, such as "bt_jax/data/sources/npz.py"."""
    return path.relative_to(ROOT).as_posix()


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): name_of(path) for path in FILES
}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text())


@cache
def imported(name: str) -> frozenset[str]:
    """Full names of all imports of a file, also inside functions: "numpy", "bt_jax.data.sources.npz.read"."""
    names = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import, which no check here follows"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(DYNAMIC):
            # The program computes the module's name from strings in the file, but not from "__main__".
            constants = {part.value for part in ast.walk(tree(name)) if isinstance(part, ast.Constant)}
            strings = {value for value in constants if isinstance(value, str)} - {"__main__"}
            inner = {f"{text}{name}" for text in strings if text.startswith("bt_jax.") for name in strings}
            names |= {module for module in MODULES if {module, module.removeprefix("bt_jax.")} & strings}
            names |= inner & MODULES.keys()  # joined from two strings, such as f"bt_jax.tasks.{name}"
    return frozenset(names)


def import_pairs() -> set[tuple[str, str]]:
    """(importing file, imported file) within the package."""
    pairs = set()
    for name in MODULES.values():
        for full in imported(name):
            while full and full not in MODULES:
                full = full.rpartition(".")[0]
            if full and MODULES[full] != name:
                pairs.add((name, MODULES[full]))
    return pairs


def circle(pairs) -> list[str] | None:
    """The nodes of one circle of imports, or None if there is none."""
    graph: dict[str, set[str]] = {}
    for start, end in pairs:
        graph.setdefault(start, set()).add(end)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return None


def folder_of(name: str) -> str:
    """The folder of a file, or the file itself if it is directly in bt_jax/."""
    folder = name.rpartition("/")[0]
    return name if folder == "bt_jax" else folder


def between_folders(pairs) -> set[tuple[str, str]]:
    folders = {(folder_of(start), folder_of(end)) for start, end in pairs}
    return {(start, end) for start, end in folders if start != end}


def test_files_import_one_way():
    assert len(import_pairs()) > 200  # the search finds imports
    assert circle(import_pairs()) is None


def test_folders_import_one_way():
    assert circle(between_folders(import_pairs())) is None


def test_the_root_is_small():
    """Most files are in folders, and no file is called like a folder."""
    flat = {name for name in MODULES.values() if name.count("/") == 1 and not name.endswith("__init__.py")}
    folders = {name.split("/")[1] for name in MODULES.values() if name.count("/") > 1}
    assert len(flat) <= 14 and len(folders) > 10
    assert {Path(name).stem for name in flat} & folders == set()


@pytest.mark.parametrize("framework, folders", [("tensorflow", TENSORFLOW), ("torch", TORCH)])
def test_only_one_folder_imports_a_framework(framework, folders):
    importing = {
        name for name in MODULES.values() if any(full.split(".")[0].startswith(framework) for full in imported(name))
    }
    assert importing and {name for name in importing if not name.startswith(folders)} == set()


def test_the_package_imports_no_other_folder_of_the_repository():
    others = {"tests", "benchmarks", "configs", "launch"}
    assert {name for name in MODULES.values() if {full.split(".")[0] for full in imported(name)} & others} == set()


def test_light_modules_load_no_framework():
    heavy = "tensorflow", "torch", "jax", "flax", "orbax"
    script = f"import sys, {', '.join(LIGHT)}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_public_names_are_listed_and_imported_when_they_are_used():
    script = (
        "import sys, bt_jax, bt_jax.evals as e; print({*dir(bt_jax)} >= {*bt_jax.__all__}, {*dir(e)} >= {*e.__all__});"
    )
    script += (
        "print([name for name in ('jax', 'numpy') if name in sys.modules]); from bt_jax import *; print(preprocess)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    listed, loaded, function = done.stdout.splitlines()
    assert (listed, loaded) == ("True True", "[]") and function.startswith("<function preprocess")
    for module in (bt_jax, bt_jax.evals):
        assert all(callable(getattr(module, name)) or getattr(module, name).__doc__ for name in module.__all__)
        assert not hasattr(module, "nothing")


def test_the_self_check_loads_with_jax_alone(tmp_path):
    """The self check runs first on a new machine, perhaps before other packages are installed."""
    packages = Path(jax.__file__).parents[1]
    for name in ("jax", "jaxlib", "numpy", "numpy.libs", "scipy", "scipy.libs", "ml_dtypes", "opt_einsum"):
        if (packages / name).exists():
            (tmp_path / name).symlink_to(packages / name)
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "JAX_PLATFORMS": "cpu"}
    command = [
        sys.executable,
        "-S",
        "-c",
        "import bt_jax.selfcheck.__main__",
    ]  # -S hides the other packages of the environment
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_file_is_in_the_wheel(monkeypatch):
    """The wheel gets the files that `build_py` lists. A file outside the list is missing for users."""
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files()
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    outputs = {Path(path).relative_to(command.build_lib).as_posix() for path in command.get_outputs(False)}
    present = {name_of(path) for path in (ROOT / "bt_jax").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert present <= outputs, present - outputs
    assert {path.split("/")[0] for path in outputs} == {"bt_jax"}
    folders = {path.parent for path in FILES}
    assert {name_of(folder) for folder in folders if not (folder / "__init__.py").exists()} == set()


def test_a_wheel_has_no_files_of_earlier_builds(monkeypatch):
    """pip runs the command `bdist_wheel`, which copies everything below build/lib."""
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py", "script_args": ["bdist_wheel"]})
    distribution.parse_config_files()
    assert distribution.parse_command_line() and distribution.commands == ["clean", "bdist_wheel"]
    assert distribution.get_option_dict("clean")["all"][1]


def test_random_keys_come_first():
    """Every parameter `key` without the annotation `str` is a random key. Keyword-only parameters do not count."""
    count, later = 0, set()
    for name in MODULES.values():
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.FunctionDef):
                positional = (*node.args.posonlyargs, *node.args.args)
                parameters = [parameter for parameter in positional if parameter.arg not in ("self", "cls")]
                for index, parameter in enumerate(parameters):
                    annotation = parameter.annotation and ast.unparse(parameter.annotation)
                    if parameter.arg == "key" and annotation != "str":
                        count += 1
                        later |= {(name, node.name)} if index else set()
    assert count > 10 and later == KEY_LATER


def test_every_config_key_has_a_help_text():
    described = [row for kind in keys.TASKS.values() for row in keys._described(kind())]
    assert len({key for key, *_ in described}) > 60
    assert [key for key, _, text in described if len(text) < 10] == []


def test_no_file_is_long():
    longer = {name for name in MODULES.values() if len((ROOT / name).read_text().splitlines()) > LONGEST}
    assert longer == set()


def constant_text(node: ast.expr, *, end: bool) -> str:
    """The constant text at the start or the end of a string expression; "" if a value is there."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return constant_text(node.values[-1 if end else 0], end=end)
    return constant_text(node.body, end=end) if isinstance(node, ast.IfExp) else ""


def wrong_messages(code: ast.Module) -> list[str]:
    """The texts of `UserError(cause, fix)` in other forms than "Cause", or "name=value ...", and "Fix."."""
    wrong = []
    for call in ast.walk(code):
        if not (isinstance(call, ast.Call) and ast.unparse(call.func).endswith("UserError") and call.args):
            continue
        cause, *fix = call.args
        start = constant_text(cause, end=False)
        if start[:1].islower() and not PROPER_NAME.match(start) or constant_text(cause, end=True).endswith("."):
            wrong.append(ast.unparse(cause))
        for text in fix:
            start, end = constant_text(text, end=False), constant_text(text, end=True)
            if start[:1].islower() or end and not end.rstrip().endswith("."):
                wrong.append(ast.unparse(text))
    return wrong


def test_messages_are_a_cause_and_a_fix():
    """A cause starts with a capital or a name, without a full stop; a fix has a capital and a full stop."""
    assert {name: wrong for name in MODULES.values() if (wrong := wrong_messages(tree(name)))} == {}


@pytest.mark.parametrize(
    "arguments", ["'the disk is full', 'Wait.'", "'Full.', 'Wait.'", "f'{x} is', 'wait.'", "f'{x}', f'Wait {x} s'"]
)
def test_a_wrong_message_is_noticed(arguments):
    assert len(wrong_messages(ast.parse(f"raise messages.UserError({arguments})"))) == 1


def test_texts_name_the_commands_as_the_documentation_does():
    tools = re.compile(r"python -m bt_jax\.(convert|embed|plan|prepare|report|selfcheck)\b")
    assert [name_of(path) for path in FILES if tools.search(path.read_text())] == []


def test_versions_agree():
    changes = re.findall(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    readme = re.findall(r"^Version (\d[\w.]*\w)", (ROOT / "README.md").read_text(), flags=re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert [changes[0], *readme, citation] == [bt_jax.__version__] * 3


def requirements(option: str) -> list[Requirement]:
    """The requirements in setup.cfg: "install_requires", or those of an extra."""
    package = configparser.RawConfigParser()
    package.read(ROOT / "setup.cfg")
    section = "options" if option == "install_requires" else "options.extras_require"
    return [Requirement(line) for line in package[section][option].split("\n") if line]


def test_the_oldest_versions_are_the_lower_bounds():
    needed = [one for option in ("install_requires", "tfds", "gcs", "test") for one in requirements(option)]
    lowest = {(one.name, Version(b.version)) for one in needed for b in one.specifier if b.operator == ">="}
    lines = (ROOT / "tests/oldest.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if not line.startswith("#")]
    assert {(name, Version(version)) for name, version in pinned} == lowest


def test_hooks_and_check_use_one_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    in_hooks = [Requirement(line) for hook in hooks for line in hook["additional_dependencies"]]
    in_setup = requirements("dev")
    assert {one for one in in_hooks if one.name == "ruff"} == {one for one in in_setup if one.name == "ruff"}
