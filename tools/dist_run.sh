#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: TOOL PROCESSES ARGUMENTS...
set -euo pipefail
here=$(dirname "$0")
# The environment that tools/install.sh made, or else the python in use.
venv=${VENV:-.venv}
[ "${venv#/}" != "$venv" ] || venv="$here/../$venv"
python="$venv/bin/python"
[ -x "$python" ] || python=python
tool=$1 processes=$2
shift 2
# On one machine without a PORT, torchrun finds a free one.
if [ "${NNODES:-1}" = 1 ] && [ -z "${PORT:-}" ]; then
    meeting=(--standalone)
else
    meeting=(--nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}"
             --master_addr "${MASTER_ADDR:-127.0.0.1}"
             --master_port "${PORT:-29500}")
fi
PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" exec "$python" \
    -m torch.distributed.run "${meeting[@]}" --nproc_per_node "$processes" \
    "$here/$tool" "$@" --launcher pytorch
