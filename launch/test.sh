#!/usr/bin/env bash
# Sets up an environment of the interpreter in PYTHON (default python3) and passes the tests in it.
#   bash launch/test.sh                                    in .venv
#   PYTHON=/path/to/python3.12 bash launch/test.sh         in .venv-3.12
#   bash launch/test.sh tests/test_losses.py -k gram       arguments go to pytest; without any, files share the cores
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
folder=.venv
if [ -n "${PYTHON:-}" ]; then
  folder=.venv-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
fi
environment "$folder" "[test]"
# A file stays on one worker, for what its tests share; more than four would want for memory.
[ $# -gt 0 ] || set -- --numprocesses=auto --maxprocesses=4 --dist=loadfile
exec "$folder/bin/python" -m pytest "$@"
