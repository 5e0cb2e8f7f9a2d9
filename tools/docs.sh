#!/usr/bin/env bash
# Build the documentation site into site/; fails if a link leads nowhere.
# Arguments go to mkdocs, for example: bash tools/docs.sh serve
#
#   DOCS_VENV  an environment for mkdocs, made if needed  (default .venv-docs)
#   PYTHON     the interpreter it is made with            (default python3)
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${DOCS_VENV:-.venv-docs}
if [ ! -x "$venv/bin/mkdocs" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
    # What the extra "docs" names; the site is made without importing torch.
    "$venv/bin/python" - <<'EOP' | xargs "$venv/bin/python" -m pip --quiet install
import configparser

setup = configparser.ConfigParser()
setup.read('setup.cfg')
print(setup['options.extras_require']['docs'])
EOP
fi
# Without the theme's announcement of another tool.
export NO_MKDOCS_2_WARNING=1
exec "$venv/bin/mkdocs" "${@:-build}"
