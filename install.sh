#!/bin/sh
# Sets up .venv beside this file and installs exo into it. Works sourced (the environment is then active) and executed, by bash, zsh and sh.
#   . ./install.sh            what exo needs
#   . ./install.sh test       also what its tests need
#   . ./install.sh --native   also llama.cpp built for this very processor (minutes; needs a C++ compiler)
# Any extra of pyproject.toml may be named. Runs again cleanly at any time, also after it was interrupted.

_exo_say() { printf 'install.sh: %s\n' "$*" >&2; }

# A candidate counts only if it runs: pyenv's shims stand in PATH under names whose Python is not installed.
_exo_suits() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12) or sys.implementation.name != "cpython")' \
    >/dev/null 2>&1
}

_exo_find_python() {
  for _exo_candidate in "${EXO_PYTHON:-}" python3.12 python3.13 python3 python python3.14; do
    [ -n "$_exo_candidate" ] && _exo_suits "$_exo_candidate" && command -v "$_exo_candidate" && return 0
  done
  # pyenv's own versions: where PYENV_ROOT says, in the home folder, and beside the shims that PATH names; then Homebrew's
  {
    printf '%s\n' "${PYENV_ROOT:-}" "${HOME:-}/.pyenv"
    printf '%s\n' "$PATH" | tr ':' '\n' | sed -n 's#/shims/*$##p'
  } | while IFS= read -r _exo_folder; do
    [ -d "$_exo_folder/versions" ] && find "$_exo_folder/versions" -maxdepth 3 -path '*/3.1[2-9]*/bin/python3' 2>/dev/null | sort
  done | {
    cat
    printf '%s\n' /opt/homebrew/bin/python3.12 /opt/homebrew/bin/python3.13 /usr/local/bin/python3.12 /usr/local/bin/python3.13
  } | {
    while IFS= read -r _exo_candidate; do
      [ -x "$_exo_candidate" ] && _exo_suits "$_exo_candidate" && printf '%s\n' "$_exo_candidate" && exit 0
    done
    exit 1
  }
}

# Where this file is: bash and zsh tell, another shell that sources it does not.
_exo_where() {
  if [ -n "${_exo_source:-}" ]; then :
  elif [ "${0##*/}" = install.sh ]; then _exo_source=$0
  else _exo_source=./install.sh; fi
  [ -f "$_exo_source" ] || {
    _exo_say "this shell does not tell where install.sh is: cd into exo's folder, then . ./install.sh"
    return 1
  }
  _exo_root=$(cd "$(dirname "$_exo_source")" && pwd)
}

_exo_main() {
  _exo_native="" _exo_names="" _exo_new=""
  for _exo_word in "$@"; do
    case "$_exo_word" in
      --native) _exo_native=yes ;;
      -*) _exo_say "there is no option $_exo_word (install.sh [EXTRA …] [--native])"; return 1 ;;
      *) _exo_names="$_exo_names${_exo_names:+,}$_exo_word" ;;
    esac
  done
  _exo_where || return 1
  _exo_wanted="$(cat "$_exo_root/pyproject.toml" "$_exo_root/requirements.lock" 2>/dev/null | cksum) ${_exo_names:+[$_exo_names]}"
  if [ "$(cat "$_exo_root/.venv/.exo-installed" 2>/dev/null)" != "$_exo_wanted" ] || ! _exo_suits "$_exo_root/.venv/bin/python"; then
    _exo_new=yes
    _exo_python=$(_exo_find_python) || {
      _exo_say "exo needs Python 3.12 or newer and none was found: install one (python.org, pyenv, your system's packages) or name it in EXO_PYTHON"
      return 1
    }
    "$_exo_python" "$_exo_root/scripts/install.py" "$_exo_names" "$_exo_wanted" || return 1
  fi
  . "$_exo_root/.venv/bin/activate"
  # exo is there, whatever comes of this
  if [ -n "$_exo_native" ]; then
    _exo_say "building llama.cpp for this processor (about eight minutes on two cores)"
    "$_exo_root/.venv/bin/python" -m exo engine build || return 1
  fi
  [ -z "$_exo_new" ] || _exo_next
}

_exo_next() {
  [ -n "$_exo_sourced" ] || _exo_say "in this shell, and in every new one:  . $_exo_root/.venv/bin/activate"
  _exo_say "then, for a first answer:  exo run \"What is the capital of Japan?\"   (exo starts a node, exo --help tells the rest)"
}

_exo_source="" _exo_sourced=""
if [ -n "${BASH_VERSION:-}" ]; then
  eval '_exo_source=${BASH_SOURCE[0]}'
  [ "$_exo_source" = "$0" ] || _exo_sourced=yes
elif [ -n "${ZSH_VERSION:-}" ]; then
  eval '_exo_source=${(%):-%x}'
  case "${ZSH_EVAL_CONTEXT:-}" in *:file*) _exo_sourced=yes ;; esac
elif [ "${0##*/}" != install.sh ]; then
  _exo_sourced=yes
fi
_exo_main "$@"
_exo_status=$?
_exo_was=$_exo_sourced
unset _exo_source _exo_sourced _exo_root _exo_native _exo_names _exo_new _exo_wanted _exo_python _exo_word _exo_candidate
unset -f _exo_say _exo_suits _exo_find_python _exo_where _exo_main _exo_next
# sourced: hand the status to the caller's shell, which must not be ended
[ -n "$_exo_was" ] || exit "$_exo_status"
eval "unset _exo_status _exo_was; return $_exo_status"
