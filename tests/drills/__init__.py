"""Drills: long commands that break a run on purpose and compare the result with that of an unbroken run."""
