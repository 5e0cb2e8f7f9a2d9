#!/usr/bin/env bash
# Install into .venv, then run the whole pipeline on generated data: train a
# small detector, train its energy model, compare both, refine a folder of
# images. Everything ends up in work_dirs/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/install.sh
"${VENV:-.venv}/bin/python" tools/demo.py "$@"
