# shellcheck shell=bash
# Sourced by the other scripts: makes a virtual environment and installs this package into it, once.
#   environment FOLDER EXTRAS     e.g. environment .venv "[test]"; more extras can be added to a folder later
# PYTHON names the interpreter (default python3, 3.11 or newer).

environment() {
  local folder=$1 extras=${2//[^a-z,]/} python=${PYTHON:-python3} stamp made extra missing
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "bt_jax needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.12." >&2
    return 2
  fi
  stamp="$folder/.installed-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-$(cat setup.cfg pyproject.toml | cksum | cut -d' ' -f1)"
  for made in "$stamp"-*; do # one that has all extras, and perhaps more, will do
    missing=
    for extra in ${extras//,/ }; do
      case ",${made##*-}," in *",$extra,"*) ;; *) missing=$extra ;; esac
    done
    if [ -e "$made" ] && [ -z "$missing" ]; then return 0; fi
  done
  echo "installing into $folder (once; a few minutes) ..."
  "$python" -m venv "$folder" || return
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -e ".$2" || return
  touch "$stamp-$extras"
}
