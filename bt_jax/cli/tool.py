"""What the commands without a config share: their options, and every mistake in one line."""

import argparse
import sys
from collections.abc import Callable, Sequence

from bt_jax import messages
from bt_jax.messages import UserError


class Parser(argparse.ArgumentParser):
    """The options of `python -m bt_jax.NAME`. A mistake in them raises UserError.

    Args:
      name: of the command; its errors begin with it.
      doc: heads the help, with its line breaks.
    """

    def __init__(self, name: str, doc: str):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"python -m bt_jax.{name}", description=doc, formatter_class=formatter)
        self.name = name

    def error(self, message):
        raise UserError(message[:1].upper() + message[1:], "See --help.")


def run(parser: Parser, command: Callable[[argparse.Namespace], None], arguments: Sequence[str] | None) -> int:
    """Calls command(options) with the parsed arguments, by default the program's.

    Returns:
      The exit status: 0, or 2 after a UserError, which is printed as one line on stderr.
    """
    with messages.lasting():
        try:
            command(parser.parse_args(arguments))
        except UserError as error:
            print(f"{parser.name}: {error}", file=sys.stderr)
            return 2
    return 0
