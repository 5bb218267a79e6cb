#!/usr/bin/env bash
# Brings models and data from the Hugging Face hub into the cache (HF_HOME) before a GPU is held; runs read the cache
# alone (HF_HUB_OFFLINE=1). What is there is not fetched again, and what broke off goes on.
#   fetch.sh [RECIPE.yaml | MODEL] ..   all that the recipes read of the hub (`atlas models RECIPE` lists it), and further
#                                       models; jobs/paper.yaml where nothing is named
#   WEIGHTS=no fetch.sh ..              tokenizers and settings alone: all that a job's driver reads of a model
#   sbatch cluster/fetch.sh ..          on Slurm, a job of its own without GPUs; HF_HOME is on a file system of all nodes
# Gated models want a token: in HF_TOKEN, or in the file $HF_HOME/token. It is no argument of any process.
#SBATCH --job-name=atlas-fetch
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
PATH=$PATH:$PWD/.venv/bin
unset HF_HUB_OFFLINE
[ "$#" -gt 0 ] || set -- jobs/paper.yaml
leave=(--exclude 'original/*' --exclude 'consolidated*')  # the same weights once more
[ "${WEIGHTS:-yes}" = yes ] || leave+=(--exclude '*.safetensors' --exclude '*.bin' --exclude '*.pth')
wanted=
for name in "$@"; do
  case $name in
    *.yaml) lines=$(atlas models "$name") ;;
    *) lines="model $name main" ;;
  esac
  wanted+=$lines$'\n'
done
while read -r kind name revision; do
  case $kind in
    model) hf download "$name" --revision "$revision" "${leave[@]}" ;;
    dataset) hf download "$name" --revision "$revision" --repo-type dataset ;;
  esac </dev/null
done <<<"$wanted"
