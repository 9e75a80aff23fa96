"""The report of a run: one self-contained HTML file made of what lies in the run folder.

    python -m bt_jax.report RUN              writes RUN/report.html again
    python -m bt_jax.report RUN1 RUN2 ...    the curves of all in one report: that of the first, or --out FILE

Only `metrics.jsonl` must be there. A part whose input is missing or damaged is left out, with a sentence saying why.
"""

import sys

from bt_jax.cli import jax_settings, tool
from bt_jax.report import write


def main(argv: list[str] | None = None) -> int:
    parser = tool.Parser("report", "Writes report.html of a run again.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder; several are drawn side by side")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: report.html in the first run folder)")
    jax_settings.settle()
    return tool.run(parser, lambda options: print(write.report(*options.runs, out=options.out)), argv)


if __name__ == "__main__":
    sys.exit(main())
