#!/usr/bin/env bash
# Sets up an environment with the interpreter in PYTHON (default python3) and runs the tests in it.
#   bash launch/test.sh                                    in .venv
#   PYTHON=/path/to/python3.12 bash launch/test.sh         in .venv-3.12
#   bash launch/test.sh --slow                             also the slow tests: all devices, kills, large networks
#   bash launch/test.sh tests/objectives -k gram           other arguments go to pytest, which then uses one core
# The tests keep their compiled programs in $BT_JAX_TEST_CACHE (default ~/.cache/bt_jax/tests) for the next run.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
folder=.venv
if [ -n "${PYTHON:-}" ]; then
  folder=.venv-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
fi
environment "$folder" "[test]"
# All tests of a file run on one worker, because they share fixtures. The longest files are first (tests/conftest.py).
# More than four workers would run out of memory.
share=(--numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder)
if [ $# -eq 0 ]; then
  set -- "${share[@]}" -m "not slow"
elif [ "$1" = --slow ]; then
  set -- "${share[@]}" "${@:2}"
fi
exec "$folder/bin/python" -m pytest "$@"
