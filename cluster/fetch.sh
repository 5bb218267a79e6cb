#!/usr/bin/env bash
# Brings models and data from the Hugging Face hub into the cache (HF_HOME) before a GPU is held; runs read the cache
# alone (HF_HUB_OFFLINE=1). What is there is not fetched again, and what broke off goes on.
#   fetch.sh [MODEL ..]               the models named, or else those that the paper trains; and its data
#   WEIGHTS=no fetch.sh [MODEL ..]    tokenizers and settings alone: all that a job's driver reads of a model
#   sbatch cluster/fetch.sh           on Slurm, a job of its own without GPUs; HF_HOME is on a file system of all nodes
# Gated models want a token: in HF_TOKEN, or in the file $HF_HOME/token. It is no argument of any process.
#SBATCH --job-name=atlas-fetch
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
PATH=$PATH:$PWD/.venv/bin
unset HF_HUB_OFFLINE
models=("$@")
[ "$#" -gt 0 ] || models=(meta-llama/Llama-3.1-8B-Instruct mistralai/Mistral-7B-Instruct-v0.3 Qwen/Qwen2.5-7B-Instruct)
leave=(--exclude 'original/*' --exclude 'consolidated*')  # the same weights once more
[ "${WEIGHTS:-yes}" = yes ] || leave+=(--exclude '*.safetensors' --exclude '*.bin' --exclude '*.pth')
for model in "${models[@]}"; do hf download "$model" "${leave[@]}"; done
for data in AgentGym/AgentTraj-L AgentGym/AgentEval; do hf download "$data" --repo-type dataset; done
