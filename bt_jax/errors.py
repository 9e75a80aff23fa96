"""The one exception for everything a user can mend: a wrong key, a missing folder, a batch that does not divide."""


class UserError(Exception):
    """One line with the cause and the cure. `main` prints it without a traceback and exits with status 2.

    Args:
      cause: what is wrong, naming the value that was given.
      cure: what to do about it, starting with a verb.
    """

    def __init__(self, cause: str, cure: str):
        super().__init__(f"{cause}. {cure}" if cure else cause)
        self.cause = cause
        self.cure = cure
