"""The faults of `python -m tests.mutants` are all still there to be planted, and so are the tests that notice them."""

from pathlib import Path

from tests.mutants.fault import nodes, planted
from tests.mutants.faults import FAULTS

ROOT = Path(__file__).parents[1]


def test_no_fault_is_stale():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 80
    for fault in FAULTS:
        path, changed = planted(fault, ROOT)
        assert changed != path.read_text() and nodes(fault, ROOT), fault.name
