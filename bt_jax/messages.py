"""What a person reads: lines on the terminal, and the one exception for everything that a user can fix."""

import errno
import re

TRY_AGAIN = 75  # exit status EX_TEMPFAIL (sysexits.h): nothing is wrong with the command, give it once more


class UserError(Exception):
    """One line with the cause and the cure. `main` prints it without a traceback and exits with `status`.

    Args:
      cause: what is wrong, naming the value that was given.
      cure: what to do about it, starting with a verb.
      status: 2, or another where a launcher is to do something else than to give up.
    """

    def __init__(self, cause: str, cure: str, *, status: int = 2):
        # Names that a person gave may hold line breaks.
        super().__init__(" ".join((f"{cause}. {cure}" if cure else cause).split()))
        self.cause = cause
        self.cure = cure
        self.status = status


def line(error: BaseException, limit: int = 300) -> str:
    """What an error of another program says: one line, without colours, of `limit` letters at most."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    return " ".join(text.split())[:limit] or type(error).__name__


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the error, or one that caused it, says that there is no space left."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "no space left" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def say(text: str) -> None:
    """One line on the terminal, from the first process only."""
    import jax  # here, so that a program that only reports an error does not wait for JAX to load

    if jax.process_index() == 0:
        print(text, flush=True)
