#!/usr/bin/env bash
# Install the package and what it needs into a virtual environment. Does
# nothing when that has been done for this checkout, its setup.cfg and this
# file. A run that was interrupted can be repeated.
#
#   VENV    the environment                      (default .venv)
#   PYTHON  the interpreter it is made with      (default: that of a finished
#           environment, else the first of python3.11, 3.12, 3.10, 3.13 here)
#   TORCH   the torch requirement                (default torch==2.13.0)
#   STACK   openmmlab: mmcv, mmengine and mmdet; onedl: the forks of them that
#           are maintained                       (default openmmlab, and onedl
#           for Python 3.13, which mmcv 2.1.0 cannot be built with)
#   WHEELS  a folder of wheels to install from, without a network
#
# mmcv exists as source only and is compiled here (about 7 minutes on two
# cores). A folder with a wheel of it in PIP_FIND_LINKS or WHEELS spares that.
set -euo pipefail
[ -z "${WHEELS:-}" ] || WHEELS=$(cd "$WHEELS" && pwd)
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
TORCH=${TORCH:-torch==2.13.0}
# Left behind by a run that was interrupted while it changed the environment.
changing="$VENV.unfinished"
stamp="$VENV/mmdet_ebm-install"

say() { printf '\n== %s\n' "$*"; }
fail() { echo "error: $*" >&2; exit 1; }
trap 'exit 130' INT
trap 'exit 143' TERM

# Python 3.10 to 3.13 that can make environments. Some names are there and do
# not run.
suits() {
    "$1" -c 'import sys, ensurepip, venv
sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null
}
# The same for an interpreter and the environments that are made with it.
identity() {
    "$1" -c 'import sys; print(sys.version, sys.base_prefix)' 2>/dev/null
}
python() { "$VENV/bin/python" "$@"; }
pip() {
    local options=(--disable-pip-version-check --quiet "$1") status=0
    [ -z "${WHEELS:-}" ] || [ "$1" != install ] ||
        options+=(--no-index --find-links "$WHEELS")
    touch "$changing"
    python -m pip "${options[@]}" "${@:2}" || status=$?
    rm -f "$changing"
    return "$status"
}

if [ -n "${PYTHON:-}" ]; then
    suits "$PYTHON" ||
        fail "$PYTHON is no Python 3.10 to 3.13 with the module venv"
elif [ -e "$stamp" ] && [ ! -e "$changing" ] && suits "$VENV/bin/python" &&
    python -m pip --version >/dev/null 2>&1; then
    PYTHON="$VENV/bin/python"
else
    for PYTHON in python3.11 python3.12 python3.10 python3.13 python3 none; do
        suits "$PYTHON" && break
    done
    [ "$PYTHON" != none ] || fail "no Python 3.10 to 3.13 with the module" \
        "venv is on the PATH; name one in PYTHON"
fi
made_with=$(identity "$PYTHON")
case "${STACK:-$made_with}" in
    onedl | 3.13.*)
        extra=onedl mmcv=onedl-mmcv==2.3.6
        others=(onedl-mmengine==0.10.12 onedl-mmdetection==3.5.1) ;;
    openmmlab | 3.*)
        extra=mmdet mmcv=mmcv==2.1.0
        others=(mmengine==0.10.7 mmdet==3.3.0) ;;
    *) fail "STACK must be openmmlab or onedl, not $STACK" ;;
esac

wanted="$(cat setup.cfg tools/install.sh | cksum) $TORCH $mmcv $PWD $made_with"
is_whole() {
    [ ! -e "$changing" ] &&
        [ "$(identity "$VENV/bin/python")" = "$made_with" ] &&
        python -m pip --version >/dev/null 2>&1
}
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && is_whole; then
    say "Environment in $VENV is up to date"
    exit 0
fi

if ! is_whole; then
    [ -e "$changing" ] || [ -e "$VENV/pyvenv.cfg" ] ||
        [ -z "$(ls -A "$VENV" 2>/dev/null)" ] ||
        fail "$VENV holds something else than an environment"
    say "Creating the environment in $VENV with Python ${made_with%% *}"
    mkdir -p "$(dirname "$VENV")"
    touch "$changing"
    "$PYTHON" -m venv --clear "$VENV"
    rm -f "$changing"
fi
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
if [ "$(cat "$built_for" 2>/dev/null)" != "$mmcv $torch_version" ]; then
    say "Installing $mmcv (compiles for minutes unless there is a wheel)"
    build=$(mktemp -d)
    set -m # the build gets a process group of its own, to be ended as one
    # Without debug symbols and with -O2 the build takes a fifth of the time.
    # The torch just installed must be seen by it, hence no isolation; a wheel
    # that pip cached may be of another torch, hence no cache.
    TMPDIR="$build" MMCV_WITH_OPS=1 CFLAGS="-O2 -g0 -w" CXXFLAGS="-O2 -g0 -w" \
        MAX_JOBS="${MAX_JOBS:-$(nproc)}" pip install \
        --no-build-isolation --no-cache-dir --force-reinstall --no-deps \
        "$mmcv" >"$build/log" 2>&1 &
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
pip install --no-build-isolation --editable ".[$extra,demo,tests]" \
    "$mmcv" "${others[@]}"
usable_opencv
python -c 'import mmcv.ops' || {
    fail "the installed mmcv does not load with torch" \
        "$torch_version; a wheel for another torch in PIP_FIND_LINKS?"
}
python -c 'import mmdet_ebm.models'
echo "$mmcv $torch_version" >"$built_for"
echo "$wanted" >"$stamp"
