#!/usr/bin/env bash
# A Ray cluster for one job on Slurm: sbatch -N 3 --gres=gpu:4 cluster/slurm.sh jobs/paper.yaml --set runs=/shared/runs
# The repository and its .venv lie on a file system that all nodes see. The same command goes on after a time limit.
# Models and data come first, in a job without GPUs, into HF_HOME on such a file system; put before -N 3:
#   --dependency=afterok:$(sbatch --parsable cluster/fetch.sh)
#SBATCH --job-name=atlas
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --signal=B:TERM@900
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
ray=.venv/bin/ray

# A token of this job alone; its file is ours to read, and no process shows it among its arguments.
folder=$(mktemp -d "$PWD/.ray-${SLURM_JOB_ID:-0}-XXXXXX")
(umask 077 && python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$folder/token")
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # since Slurm 22.05 a step has one CPU unless it is told
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"  # no node asks the hub while it holds GPUs
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/token" RAY_worker_niceness=0
export RAY_health_check_period_ms=2000 RAY_health_check_timeout_ms=3000 RAY_health_check_failure_threshold=3

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + ${SLURM_JOB_ID:-0} % 20000))
gpus=(${SLURM_GPUS_ON_NODE:+--num-gpus "$SLURM_GPUS_ON_NODE"})

srun --nodes=1 --ntasks=1 -w "$head" "$ray" start --head --block --node-ip-address="$address" --port="$port" \
  --dashboard-host=127.0.0.1 --num-cpus "$SLURM_CPUS_PER_TASK" "${gpus[@]}" &
for _ in {1..120}; do (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null && break; sleep 1; done
others=$((SLURM_JOB_NUM_NODES - 1))
if ((others > 0)); then
  srun --nodes="$others" --ntasks="$others" --exclude="$head" "$ray" start --block --address="$address:$port" \
    --num-cpus "$SLURM_CPUS_PER_TASK" "${gpus[@]}" &
fi
RAY_ADDRESS="$address:$port" .venv/bin/atlas run "$@" &
driver=$!
# the run is told before the time limit, writes its checkpoint, and is put back into the queue
trap 'kill -TERM "$driver"; wait "$driver" || true; rm -rf "$folder"; scontrol requeue "$SLURM_JOB_ID"' TERM
trap 'rm -rf "$folder"; kill $(jobs -p) 2>/dev/null || true' EXIT
wait "$driver"
