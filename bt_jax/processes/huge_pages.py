"""Huge pages for the temporary memory of a training step on Linux.

A step on a CPU allocates its temporary memory, hundreds of megabytes, and returns it at its end. The system clears it
again for every step, in pages of 4 KB: a fifth of the processor time of a step (benchmarks/results/step_cpu.md). With
pages of 2 MB it takes next to nothing. glibc uses them if GLIBC_TUNABLES asks for them, which it reads when a process
starts. Therefore a command sets this variable and starts itself again, in the same process and before it imports
anything slow.
"""

import os
import sys

VARIABLE = "GLIBC_TUNABLES"
SETTING = "glibc.malloc.hugetlb=1"  # glibc 2.35 and newer: madvise(MADV_HUGEPAGE) for each large allocation


def restart_with_them() -> None:
    """Starts this program again with the setting, unless it has one already or the system has no glibc."""
    known = os.environ.get(VARIABLE, "")
    if "glibc.malloc.hugetlb" in known or not sys.executable or not _has_glibc():
        return
    os.environ[VARIABLE] = f"{known}:{SETTING}" if known else SETTING
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # Windows, macOS, musl
        return False
