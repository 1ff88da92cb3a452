#!/bin/sh
# Every GPU figure of armor in one command, on a machine with an NVIDIA GPU, in under 25 minutes:
#
#     sh benchmarks/gpu.sh [FOLDER [STEP...]]
#
# STEPs, and the seconds each may take: doctor 200, tilings 250, solver 290, runtime 270, model 180,
# prune 240. Without any, all of them in this order: checks, the search for tilings, the solver, layers
# and MLPs, a whole model, a prune of two blocks of Llama-2-7B's shape with its peak memory. Where a
# command may take 10 minutes: doctor and solver, then tilings and runtime, then model and prune.
#
# A step that fails or takes too long is named, and the next one goes on; the exit status is then 1.
# Only where doctor finds a kernel that computes wrong numbers, nothing more is measured (without
# doctor among the STEPs it is). Results go to FOLDER, as the caller sees it, else to
# benchmarks/results/GPU; the tilings to the package as well. armor need not be installed.
set -u
case ${1:-} in '' | /*) out=${1:-} ;; *) out=$PWD/$1 ;; esac
[ $# -eq 0 ] || shift
python=${PYTHON:-python3}
case $python in /*) ;; */*) python=$PWD/$python ;; esac
cd "$(dirname "$0")" || exit 1
PYTHONPATH=$(cd ../src && pwd)${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH PYTHONUNBUFFERED=1
all="doctor tilings solver runtime model prune"
[ $# -gt 0 ] || set -- $all
for name; do
  case " $all " in *" $name "*) ;; *) echo "no step $name: $all" >&2 && exit 2 ;; esac
done
if [ -z "$out" ]; then
  say='import torch; print(torch.cuda.get_device_name().replace(" ", "-"))'
  gpu=$("$python" -c "$say") || exit 1
  out=$PWD/results/$gpu
fi
mkdir -p "$out" || exit 1

failed=
step() { # NAME SECONDS, what Python is to run
  echo "== $(date +%H:%M:%S) $1"
  name=$1 limit=$2
  shift 2
  timeout -k 10 "$limit" "$python" "$@"
  case $? in
    0) return ;;
    124 | 137) echo "== $name: stopped after $limit seconds, going on" ;;
    *) echo "== $name: failed, going on" ;;
  esac
  failed="$failed $name"
}

for name; do
  case $name in
    doctor)
      rm -f "$out/doctor.json"
      step doctor 200 -m armor doctor --json "$out/doctor.json"
      if grep -qs '"verdict": "wrong"' "$out/doctor.json"; then
        echo "== doctor: wrong numbers, so nothing is measured"
        exit 1
      fi
      ;;
    tilings)
      step tilings 250 tune.py --minutes 3
      cp ../src/armor/runtime/triton/tiles.json "$out"
      ;;
    solver)
      step solver 290 solver_gpu.py --models Llama-2-7B --long 60 --adam-iterations 500 --out "$out"
      ;;
    runtime) step runtime 270 runtime.py --quick --device cuda --out "$out" ;;
    model) step model 180 model_gpu.py --out "$out" ;;
    prune) step prune 240 prune_gpu.py --out "$out" ;;
  esac
done
echo "== $(date +%H:%M:%S) done: $out${failed:+, but not all of:$failed}"
[ -z "$failed" ]
