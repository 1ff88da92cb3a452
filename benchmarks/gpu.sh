#!/bin/sh
# Every GPU figure of armor in one command, on a machine with an NVIDIA GPU, in under 25 minutes:
#
#     sh benchmarks/gpu.sh [FOLDER]
#
# Checks first (doctor stops it if a kernel is wrong), then the search for tilings, the solver, the
# runtime, and a prune of two blocks in the shape of Llama-2-7B with its peak memory. Results go to
# benchmarks/results/GPU (or FOLDER), with the machine's name; the tilings to the package.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))')
out=${1:-results/$gpu}
mkdir -p "$out"
at() { echo "== $(date +%H:%M:%S) $*"; }

at doctor
"$python" -m armor doctor --json "$out/doctor.json"
at tilings
timeout 420 "$python" tune.py || echo "tilings: stopped, the rule's are used where none was found"
at solver
timeout 420 "$python" solver_gpu.py --models Llama-2-7B --long 60 --adam-iterations 500 --out "$out"
at runtime
timeout 300 "$python" runtime.py --quick --out "$out"
at prune
timeout 360 "$python" prune_gpu.py --out "$out"
at "done: $out"
