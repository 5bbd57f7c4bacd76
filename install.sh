#!/usr/bin/env bash
# Sets up .venv beside this file and installs exo into it. Works sourced (the environment is then active) and executed.
#   source install.sh            what exo needs
#   source install.sh test       also what its tests need
#   source install.sh --native   also llama.cpp built for this very processor (minutes; needs a C++ compiler)
# Any extra of pyproject.toml may be named. Runs again cleanly at any time.

_exo_say() { printf 'install.sh: %s\n' "$*" >&2; }

# A candidate counts only if it runs: pyenv's shims stand in PATH under names whose Python is not installed.
_exo_suits() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12) or sys.implementation.name != "cpython")' \
    >/dev/null 2>&1
}

_exo_find_python() {
  local candidate
  for candidate in "${EXO_PYTHON:-}" python3.12 python3.13 python3 python python3.14; do
    [ -n "$candidate" ] && _exo_suits "$candidate" && command -v "$candidate" && return 0
  done
  # pyenv's own versions: beside the shims that PATH names, where PYENV_ROOT says, and in the home folder
  local folder
  for folder in "${PYENV_ROOT:-}" "$HOME/.pyenv" $(printf '%s\n' "$PATH" | tr ':' '\n' | sed -n 's#/shims/*$##p'); do
    for candidate in "$folder"/versions/3.1[2-9]*/bin/python3; do
      [ -x "$candidate" ] && _exo_suits "$candidate" && printf '%s\n' "$candidate" && return 0
    done
  done
  for candidate in /opt/homebrew/bin/python3.1[2-9] /usr/local/bin/python3.1[2-9]; do
    [ -x "$candidate" ] && _exo_suits "$candidate" && printf '%s\n' "$candidate" && return 0
  done
  return 1
}

# pip without its many lines; on a terminal one line says what it is at. Everything goes to .venv/install.log.
_exo_pip() {
  local root=$1
  shift
  if [ ! -t 2 ]; then
    "$root/.venv/bin/python" -m pip --disable-pip-version-check "$@" >>"$root/.venv/install.log" 2>&1
    return
  fi
  (
    "$root/.venv/bin/python" -m pip --disable-pip-version-check "$@" >>"$root/.venv/install.log" 2>&1 &
    job=$!
    while kill -0 "$job" 2>/dev/null; do
      at=$(sed -nE 's/^ *(Collecting|Downloading|Using cached|Installing) ([^ ]+).*/\1 \2/p' "$root/.venv/install.log" | tail -n 1)
      printf '\r\033[K  %.70s' "$at" >&2
      sleep 0.3
    done
    printf '\r\033[K' >&2
    wait "$job"
  )
}

# An engine whose wheel this platform lacks is left out; everything else must install.
_exo_install() {
  local root=$1 extras=$2 name requirement left_out=() lock
  lock=(-c "$root/requirements.lock")
  : >"$root/.venv/install.log"
  _exo_pip "$root" install "${lock[@]}" pip || return 1
  _exo_pip "$root" install "${lock[@]}" -e "$root$extras" && return 0
  _exo_say "not everything could be installed at once; trying without the engines that have no wheel for this platform"
  "$root/.venv/bin/python" "$root/scripts/requirements.py" core "$extras" >"$root/.venv/core.txt" || return 1
  _exo_pip "$root" install "${lock[@]}" -r "$root/.venv/core.txt" || return 1
  while IFS= read -r requirement; do
    _exo_pip "$root" install "${lock[@]}" --only-binary=:all: "$requirement" || left_out+=("$requirement")
  done < <("$root/.venv/bin/python" "$root/scripts/requirements.py" engines)
  _exo_pip "$root" install --no-deps -e "$root" || return 1
  for name in "${left_out[@]}"; do _exo_say "left out, this platform has no wheel of it: $name"; done
}

_exo_main() {
  local root python extras="" native="" argument names=()
  for argument in "$@"; do
    case "$argument" in
      --native) native=yes ;;
      -*) _exo_say "there is no option $argument"; return 1 ;;
      *) names+=("$argument") ;;
    esac
  done
  root=$(cd "$(dirname "${BASH_SOURCE[0]:-${(%):-%x}}")" && pwd) || return 1
  if [ ${#names[@]} -gt 0 ]; then extras="[$(IFS=,; printf '%s' "${names[*]}")]"; fi
  if ! _exo_suits "$root/.venv/bin/python"; then
    python=$(_exo_find_python) || {
      _exo_say "exo needs Python 3.12 or newer and none was found: install one (python.org, pyenv, your system's packages) or name it in EXO_PYTHON"
      return 1
    }
    _exo_say "setting up .venv with $python"
    rm -rf "$root/.venv"
    "$python" -m venv "$root/.venv" || { _exo_say "$python could not make a virtual environment"; return 1; }
  fi
  local wanted
  wanted=$(cat "$root/pyproject.toml" "$root/requirements.lock" | cksum)" $extras"
  if [ "$(cat "$root/.venv/.exo-installed" 2>/dev/null)" != "$wanted" ]; then
    _exo_say "installing exo$extras and what it needs (a few minutes the first time)"
    _exo_install "$root" "$extras" || {
      _exo_say "installing failed: $(grep -E '^ERROR' "$root/.venv/install.log" | tail -n 1) (.venv/install.log has the rest)"
      return 1
    }
    printf '%s' "$wanted" >"$root/.venv/.exo-installed"
  fi
  . "$root/.venv/bin/activate"
  # exo is there, whatever comes of this
  if [ -n "$native" ]; then
    _exo_say "building llama.cpp for this processor (about eight minutes on two cores)"
    "$root/.venv/bin/python" -m exo engine build || return 1
  fi
}

_exo_main "$@"
_exo_status=$?
unset -f _exo_say _exo_suits _exo_find_python _exo_pip _exo_install _exo_main
# sourced: hand the status to the caller's shell, which must not be ended
(return 0 2>/dev/null) && eval "unset _exo_status; return $_exo_status"
exit "$_exo_status"
