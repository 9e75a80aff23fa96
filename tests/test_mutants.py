"""The faults of `python -m tests.mutants`: their places in the code exist, and the tests that must fail exist."""

from pathlib import Path

import pytest

from tests.mutants.fault import Fault, StaleError, nodes, planted
from tests.mutants.faults import FAULTS

ROOT = Path(__file__).parents[1]


def test_no_fault_is_stale():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 80
    for fault in FAULTS:
        path, changed = planted(fault, ROOT)
        assert changed != path.read_text() and nodes(fault, ROOT), fault.name


CODE = """
EPS = 1e-5


class Norm:
    def apply(self, x):
        return (x - x.mean()) / (
            x.std() + EPS)


def apply(x):
    return x - x.mean()
"""


@pytest.fixture
def tree(tmp_path):
    for folder, name, text in (
        ("bt_jax/models", "norm.py", CODE),
        ("tests", "test_norm.py", "def test_mean():\n    pass\n"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_text(text)
    return tmp_path


def test_planting_a_fault(tree):
    """A fault names a definition: its file and its line breaks may change."""
    fault = Fault("norm-eps", "Norm.apply", "(x - x.mean()) / ( x.std() + EPS)", "x", ("test_mean",))
    path, changed = planted(fault, tree)
    assert path == tree / "bt_jax" / "models" / "norm.py" and nodes(fault, tree) == ["tests/test_norm.py::test_mean"]
    assert changed == CODE.replace("(x - x.mean()) / (\n            x.std() + EPS)", "x")
    assert planted(fault._replace(where="EPS", old="1e-5", new="0"), tree)[1] == CODE.replace("1e-5", "0")
    assert planted(fault._replace(where="apply", old="x.mean()"), tree)[1].endswith("return x - x\n")


@pytest.mark.parametrize(
    "changes",
    [
        {"where": "Norm.call"},  # renamed
        {"old": "x.var()"},  # rewritten
        {"where": "Norm", "old": "x"},  # several matches
        {"old": "x.std() + EPS)", "new": "x.std("},  # not Python
    ],
)
def test_a_stale_fault_raises(tree, changes):
    fault = Fault("norm-eps", "Norm.apply", "x.std() + EPS", "x.std()", ("test_mean",))
    planted(fault, tree)
    with pytest.raises(StaleError, match="norm-eps: "):
        planted(fault._replace(**changes), tree)
    with pytest.raises(StaleError, match="norm-eps: there is no test test_std"):
        nodes(fault._replace(tests=("test_mean", "test_std")), tree)
