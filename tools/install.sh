#!/usr/bin/env bash
# Install the package and what it needs into a virtual environment (VENV,
# default .venv). Does nothing when that has been done for this version of
# setup.cfg and of this file.
#
# mmcv 2.1.0 exists as source only and is compiled here (about 7 minutes on two
# cores). A folder with a wheel of it in PIP_FIND_LINKS spares that.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
VENV=${VENV:-.venv}
TORCH=${TORCH:-torch==2.13.0}
MMCV=mmcv==2.1.0

seconds=0
say() { printf '\n== %s\n' "$*"; }

stamp="$VENV/mmdet_ebm-install"
wanted="$(cat setup.cfg tools/install.sh | cksum) $TORCH"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    say "Environment in $VENV is up to date"
    exit 0
fi

command -v "$PYTHON" >/dev/null || {
    echo "error: $PYTHON not found; set PYTHON to a Python 3.10 or newer" >&2
    exit 1
}

say "Creating the environment in $VENV"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }
# mmcv's setup.py and mmdet's config lookup need pkg_resources.
pip install --quiet 'setuptools<81' wheel ninja

say "Installing $TORCH"
pip install --quiet "$TORCH"

if ! "$VENV/bin/python" -c 'import mmcv.ops' 2>/dev/null; then
    say "Installing $MMCV (compiles for minutes unless there is a wheel)"
    build=$(mktemp -d)
    trap 'rm -rf "$build"' EXIT
    # Without debug symbols and with -O2 the build takes a fifth of the time.
    # The torch just installed must be seen by it, hence no isolation.
    TMPDIR="$build" MMCV_WITH_OPS=1 CFLAGS="-O2 -g0 -w" CXXFLAGS="-O2 -g0 -w" \
        MAX_JOBS="${MAX_JOBS:-$(nproc)}" \
        "$VENV/bin/python" -m pip --disable-pip-version-check install \
        --quiet --no-build-isolation "$MMCV" >"$build/log" 2>&1 &
    job=$!
    while kill -0 "$job" 2>/dev/null; do
        sleep 1
        if [ $((++seconds % 20)) -eq 0 ]; then
            count=$(find "$build" -name '*.o' | wc -l)
            echo "   mmcv: $seconds s, $count of about 80 files compiled"
        fi
    done
    wait "$job" || { tail -n 40 "$build/log" >&2; exit 1; }
fi

say "Installing mmdet_ebm with its tests and demo"
pip install --quiet --no-build-isolation --editable '.[demo,tests]' \
    mmengine==0.10.7 mmdet==3.3.0
"$VENV/bin/python" -c 'import mmdet_ebm.models'
echo "$wanted" >"$stamp"
