# shellcheck shell=bash
# The other scripts source this file. Its function makes a virtual environment and installs bt_jax into it once.
#   environment FOLDER EXTRAS     e.g. environment .venv "[test]"; a later call can add extras to the same folder
# PYTHON names the interpreter: Python 3.11 or newer, by default python3.

environment() {
  local folder=$1 extras=${2//[^a-z,]/} python=${PYTHON:-python3} stamp made extra missing
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "bt_jax needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.12." >&2
    return 2
  fi
  stamp="$folder/.installed-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-$(cat setup.cfg pyproject.toml | cksum | cut -d' ' -f1)"
  for made in "$stamp"-*; do # an environment with all of these extras serves, also if it has more
    missing=
    for extra in ${extras//,/ }; do
      case ",${made##*-}," in *",$extra,"*) ;; *) missing=$extra ;; esac
    done
    if [ -e "$made" ] && [ -z "$missing" ]; then return 0; fi
  done
  echo "Installing bt_jax into $folder. This takes a few minutes and happens once."
  "$python" -m venv "$folder" || return
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -e ".$2" || return
  touch "$stamp-$extras"
}
