#!/usr/bin/env bash
# One command for a bare GPU machine without a network: everything that benchmarks/gpu.py measures, into $OUT.
#
#   benchmarks/gpu.sh [--minutes 8] [--only variants sizes ...]     on a GPU
#   benchmarks/gpu.sh --device cpu --tiny                           here, to try the script itself
#
# Where the folder .whl holds wheels, they are installed beside the machine's own packages first. PYTHON names another
# interpreter than python3; MEDAUG_DATA the real data, without which the section `cohort` is left out.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
if compgen -G '.whl/*.whl' >/dev/null; then
    site=$(mktemp -d)
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl
    PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "$PYTHON" benchmarks/gpu.py "$@"
