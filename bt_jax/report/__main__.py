"""Writes the report of a run again: one self-contained HTML file, made from the files of the run folder.

    bt-jax report RUN              writes RUN/report.html again
    bt-jax report RUN1 RUN2 ...    compares runs: RUN1/comparison.html, or --out FILE

Only `metrics.jsonl` is required. If the input of a section is missing or damaged, a sentence in the report says so. A
warning names damaged files.
"""

import sys

from bt_jax.cli import jax_settings, tool
from bt_jax.report import write


def main(argv: list[str] | None = None) -> int:
    parser = tool.Parser("report", "Writes report.html of a run again.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder; several are compared in one report")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="file to write (default: RUN/report.html; for several runs comparison.html in the first one's folder)",
    )
    jax_settings.settle()
    return tool.run(parser, lambda options: print(write.report(*options.runs, out=options.out)), argv)


if __name__ == "__main__":
    sys.exit(main())
