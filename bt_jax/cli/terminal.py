"""What the commands print, on any terminal."""

import sys


def take_any_name() -> None:
    """Lets names of files be printed whose letters the terminal's encoding lacks: they are written out, as in caf\\xe9.

    Python would raise UnicodeEncodeError in the middle of a run.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a notebook or a test has put another in its place
            stream.reconfigure(errors="backslashreplace")
