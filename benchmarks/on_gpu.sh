#!/usr/bin/env bash
# What a GPU that is lent for minutes can show, in one command of at most MINUTES (9): see benchmarks/on_gpu.py.
# The same command continues. Flags go to the Python script. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${MINUTES:-9}
python=${PYTHON:-.venv/bin/python}
output=${OUTPUT:-outputs/on_gpu}
# Compiled programs stay for the next time.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$output/compiled}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 PYTHONUNBUFFERED=1
# The script ends by itself. A compilation that hangs is ended here; what was measured before it is on the disk.
exec timeout --kill-after=5 "$(awk "BEGIN {print $minutes * 60}")" \
    "$python" benchmarks/on_gpu.py --minutes "$(awk "BEGIN {print $minutes - 0.3}")" --output_dir "$output" "$@"
