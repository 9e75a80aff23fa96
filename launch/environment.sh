# shellcheck shell=bash
# Sourced by the other scripts: makes a virtual environment and installs this package into it, once.
#   environment FOLDER EXTRAS     e.g. environment .venv "[test]"
# PYTHON names the interpreter (default python3, 3.11 or newer).

environment() {
  local folder=$1 extras=$2 python=${PYTHON:-python3} stamp
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "bt_jax needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.12." >&2
    return 2
  fi
  stamp="$folder/.installed-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-$(cat setup.cfg pyproject.toml | cksum | cut -d' ' -f1)-${extras//[^a-z]/}"
  [ -e "$stamp" ] && return 0
  echo "installing into $folder (once; a few minutes) ..."
  "$python" -m venv "$folder" || return
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -e ".$extras" || return
  touch "$stamp"
}
