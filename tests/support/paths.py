"""Where things lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]  # the repository's, from which the programs run
FIXTURES = ROOT / "tests" / "fixtures"
SHARED = ROOT.parent / "shared"  # photographs and TFDS data sets, which are not part of the repository
