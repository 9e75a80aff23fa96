"""The code that the commands share. Importing it makes Ctrl-C one line, also while a command still imports."""

import sys


def _one_line_for_ctrl_c(kind, error, trace, *, otherwise=sys.excepthook) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("bt_jax: stopped.", file=sys.stderr)  # Python then ends as SIGINT does, with status 130 for a shell
    else:
        otherwise(kind, error, trace)


_program = getattr(sys.modules["__main__"], "__spec__", None)
if _program is not None and _program.name.partition(".")[0] == "bt_jax":  # not in a program that imports bt_jax
    sys.excepthook = _one_line_for_ctrl_c
