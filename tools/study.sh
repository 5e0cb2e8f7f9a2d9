#!/usr/bin/env bash
# Train detector, energy model and, for bccd, the control for three seeds, then
# compare the stages on val and test. Finished trainings are not repeated.
# Usage: bash tools/study.sh digits|bccd [WORK_DIR]
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?usage: bash tools/study.sh digits|bccd [WORK_DIR]}
work_dir=${2:-work_dirs/study/$data}
python=${PYTHON:-.venv/bin/python}
prefix=configs/$data/faster-rcnn_r18-half
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

train() { # CONFIG DIR SEED [LOAD_FROM]
    if [ ! -f "$2/done" ]; then
        "$python" tools/train.py "$1" --work-dir "$2" --resume --cfg-options \
            "randomness.seed=$3" "load_from=${4:-None}"
        cp "$2/last_checkpoint" "$2/done"
    fi
}

energy=() control=()
for seed in 0 1 2; do
    base=$work_dir/seed$seed
    train "${prefix}_$data.py" "$base/plain" "$seed"
    plain=$(cat "$base/plain/done")
    train "${prefix}_nce-plus_$data.py" "$base/nce-plus" "$seed" "$plain"
    energy+=("$(cat "$base/nce-plus/done")")
    if [ -f "${prefix}_control_$data.py" ]; then
        train "${prefix}_control_$data.py" "$base/control" "$seed" "$plain"
        control+=("$(cat "$base/control/done")")
    fi
done

options=()
[ ${#control[@]} -eq 0 ] || options=(
    --control-config "${prefix}_control_$data.py" --control "${control[@]}")
for split in val test; do
    "$python" tools/compare_stages.py "${prefix}_nce-plus_$data.py" \
        "${energy[@]}" "${options[@]}" --split "$split" \
        --out "$work_dir/$split.json"
done
