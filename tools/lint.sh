#!/usr/bin/env bash
# Check style (ruff) and types (mypy); what they look at is in pyproject.toml.
# Changes no file: "ruff format" and "ruff check --fix" mend what can be mended.
# Takes the environment that tools/install.sh made, or else the python in use.
#
#   VENV    the environment                      (default .venv)
set -euo pipefail
cd "$(dirname "$0")/.."
python="${VENV:-.venv}/bin/python"
[ -x "$python" ] || python=python
"$python" -m ruff check
"$python" -m ruff format --check
"$python" -m mypy
