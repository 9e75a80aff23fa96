"""The command line of programs without a config: their options, and one line for every mistake."""

import argparse
import sys
from collections.abc import Callable, Sequence

from bt_jax import messages
from bt_jax.messages import UserError
from bt_jax.terminal import interrupts


class Parser(argparse.ArgumentParser):
    """The options of `bt-jax NAME`. A mistake in them raises UserError.

    Args:
      name: name of the command; its errors start with it.
      doc: the first part of the help, with its line breaks.
    """

    def __init__(self, name: str, doc: str):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"bt-jax {name}", description=doc, formatter_class=formatter)
        self.name = name

    def error(self, message):
        raise UserError(message[:1].upper() + message[1:], "See --help.")


def run(
    parser: Parser,
    command: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None,
    *,
    stopped: str = "stopped.",
) -> int:
    """Calls command(options) with the parsed arguments, by default those of the program.

    Args:
      stopped: the line for Ctrl-C.

    Returns:
      The exit status: 0; 2 after a UserError, 130 after Ctrl-C, each with one line on stderr.
    """
    with messages.lasting():
        interrupts.end_with(f"{parser.name}: {stopped}")
        try:
            command(parser.parse_args(arguments))
        except UserError as error:
            print(f"{parser.name}: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:  # only in another program that calls the command
            messages.put(f"{parser.name}: {stopped}", sys.stderr)
            return 130
    return 0
