"""Folders that tests use."""

from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the repository; programs start there
FIXTURES = ROOT / "tests" / "fixtures"
SHARED = ROOT.parent / "shared"  # photographs and TFDS data sets; not part of the repository
