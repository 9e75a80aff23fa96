"""Drills: long commands that break a run on purpose and compare what comes out with an unbroken one."""
