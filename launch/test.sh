#!/usr/bin/env bash
# Sets up an environment of the interpreter in PYTHON (default python3) and passes the tests in it.
#   bash launch/test.sh                                    in .venv
#   PYTHON=/path/to/python3.12 bash launch/test.sh         in .venv-3.12
#   bash launch/test.sh --slow                             longer forms too: all devices, kills, large networks
#   bash launch/test.sh tests/objectives -k gram           other arguments go to pytest, which then uses one core
# What the tests compile is kept in $BT_JAX_TEST_CACHE, by default in ~/.cache/bt_jax/tests, for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
folder=.venv
if [ -n "${PYTHON:-}" ]; then
  folder=.venv-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
fi
environment "$folder" "[test]"
# A file stays on one worker, for what its tests share, and those that take longest are first (tests/conftest.py); more
# than four workers would want for memory.
share=(--numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder)
if [ $# -eq 0 ]; then
  set -- "${share[@]}" -m "not slow"
elif [ "$1" = --slow ]; then
  set -- "${share[@]}" "${@:2}"
fi
exec "$folder/bin/python" -m pytest "$@"
