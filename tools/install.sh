#!/usr/bin/env bash
# Install the package and what it needs into a virtual environment. Does
# nothing when that has been done for this checkout, its setup.cfg and this
# file.
#
#   VENV    the environment                      (default .venv)
#   PYTHON  the interpreter it is made with      (default python3.11)
#   TORCH   the torch requirement                (default torch==2.13.0)
#
# mmcv 2.1.0 exists as source only and is compiled here (about 7 minutes on two
# cores). A folder with a wheel of it in PIP_FIND_LINKS spares that.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
VENV=${VENV:-.venv}
TORCH=${TORCH:-torch==2.13.0}
MMCV=mmcv==2.1.0

say() { printf '\n== %s\n' "$*"; }
python() { "$VENV/bin/python" "$@"; }
pip() { python -m pip --disable-pip-version-check --quiet "$@"; }

stamp="$VENV/mmdet_ebm-install"
wanted="$(cat setup.cfg tools/install.sh | cksum) $TORCH $PWD"
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
# mmcv's setup.py and mmdet's config lookup need pkg_resources.
# torch needs >= 77.0.3 and would take the newest.
pip install 'setuptools>=77.0.3,<81' wheel ninja numpy

say "Installing $TORCH"
pip install "$TORCH"

# opencv-python needs the system's libGL; the headless build does not.
usable_opencv() {
    python -c 'import cv2' 2>/dev/null || {
        say "opencv-python cannot be loaded here; taking the headless build"
        pip uninstall --yes opencv-python
        pip install opencv-python-headless
    }
}

built_for="$VENV/mmcv-built-for"
torch_version=$(python -c 'import torch; print(torch.__version__)')
if [ "$(cat "$built_for" 2>/dev/null)" != "$torch_version" ]; then
    say "Installing $MMCV (compiles for minutes unless there is a wheel)"
    build=$(mktemp -d)
    set -m # the build gets a process group of its own, to be ended as one
    # Without debug symbols and with -O2 the build takes a fifth of the time.
    # The torch just installed must be seen by it, hence no isolation; a wheel
    # that pip cached may be of another torch, hence no cache.
    TMPDIR="$build" MMCV_WITH_OPS=1 CFLAGS="-O2 -g0 -w" CXXFLAGS="-O2 -g0 -w" \
        MAX_JOBS="${MAX_JOBS:-$(nproc)}" \
        "$VENV/bin/python" -m pip --disable-pip-version-check --quiet install \
        --no-build-isolation --no-cache-dir --force-reinstall --no-deps \
        "$MMCV" >"$build/log" 2>&1 &
    job=$!
    set +m
    trap 'kill -- -$job 2>/dev/null || true; rm -rf "$build"' EXIT
    seconds=0
    while kill -0 "$job" 2>/dev/null; do
        sleep 1
        if [ $((++seconds % 20)) -eq 0 ]; then
            count=$(find "$build" -name '*.o' | wc -l)
            echo "   mmcv: $seconds s, $count of about 80 files compiled"
        fi
    done
    wait "$job" || { tail -n 40 "$build/log" >&2; exit 1; }
fi

say "Installing mmdet_ebm with mmdet, its tests and the demo"
pip install --no-build-isolation --editable '.[mmdet,demo,tests]' \
    "$MMCV" mmengine==0.10.7 mmdet==3.3.0
usable_opencv
python -c 'import mmcv.ops' || {
    echo "error: the installed mmcv does not load with torch" \
        "$torch_version; a wheel for another torch in PIP_FIND_LINKS?" >&2
    exit 1
}
python -c 'import mmdet_ebm.models'
echo "$torch_version" >"$built_for"
echo "$wanted" >"$stamp"
