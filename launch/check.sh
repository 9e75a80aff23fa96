#!/usr/bin/env bash
# Checks lint, format, types, scripts and workflows of the whole repository. Every tool runs and prints one line.
#   bash launch/check.sh                                   in .venv
#   PYTHON=/path/to/python3.12 bash launch/check.sh        in .venv-3.12
set -uo pipefail
cd "$(dirname "$0")/.." || exit
# shellcheck source=launch/environment.sh
source launch/environment.sh
folder=.venv
if [ -n "${PYTHON:-}" ]; then
  folder=.venv-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit
fi
environment "$folder" "[test,dev]" || exit
tools=$folder/bin failed=0

check() { # check NAME COMMAND...: runs a tool; prints its output only if it fails
  local name=$1 output
  shift
  if output=$("$@" 2>&1); then
    echo "$name: passed"
  else
    failed=1
    printf '%s\n%s: FAILED (%s)\n' "$output" "$name" "$*"
  fi
}

mapfile -t scripts < <(find launch benchmarks tests -name '*.sh' -o -name '*.sbatch' | sort)
schema=("$tools/check-jsonschema" --quiet --builtin-schema)
check "ruff check" "$tools/ruff" check .
check "ruff format" "$tools/ruff" format --check .
check "pyright" "$tools/pyright" --pythonpath "$tools/python"
check "shellcheck" "$tools/shellcheck" -x "${scripts[@]}"
check "workflows" "${schema[@]}" vendor.github-workflows .github/workflows/*.yml
check "issue forms" "${schema[@]}" vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
check "CITATION.cff" "${schema[@]}" vendor.citation-file-format CITATION.cff
exit "$failed"
