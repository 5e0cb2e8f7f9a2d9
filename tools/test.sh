#!/usr/bin/env bash
# Install into .venv, then check style and types and run the tests. Arguments
# go to pytest, for example: bash tools/test.sh tests/ops -k gradient
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/install.sh
python="${VENV:-.venv}/bin/python"
printf '\n== Style and types\n'
bash tools/lint.sh
printf '\n== Tests\n'
# A process for each core with one thread each: threads that wait for each
# other on shared cores are far slower.
OMP_NUM_THREADS=1 "$python" -m pytest -n "$(nproc)" --dist loadscope "$@"
