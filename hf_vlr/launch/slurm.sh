#!/bin/bash
# Slurm: one launcher on each machine; saves before its time is up, queues again and goes on
#
#   hf-vlr launch slurm --out slurm.sh             adapt the lines that begin with #SBATCH
#   sbatch slurm.sh vlltr-vitb16-stage1 --out runs/one --data imagefolder:photos data.texts=texts.jsonl
#   CONFIG=fsdp2 sbatch --nodes=4 slurm.sh RECIPE …
#
# The arguments are those of `hf-vlr train`. The folder of --out, and the one this is submitted from, must be on a file
# system that all machines see; --resume is added, so that the same command starts a run and goes on with it.
#SBATCH --job-name=hf-vlr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

if (($# == 0)); then
  echo "usage: sbatch slurm.sh RECIPE [arguments of hf-vlr train]" >&2
  exit 2
fi

nodes=${SLURM_JOB_NUM_NODES:-1}
processes=$((nodes * ${SLURM_GPUS_ON_NODE:-1}))
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
# jobs that share a machine get different ports
port=$((20000 + SLURM_JOB_ID % 10000))
config="${SLURM_SUBMIT_DIR:-.}/.accelerate-$SLURM_JOB_ID.yaml"
trap 'rm -f "$config"' EXIT
hf-vlr launch "${CONFIG:-multi-node}" >"$config"
# seconds that a process has to save after SIGTERM (torch 2.11 knows no such setting: 30)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240

# SIGTERM, --signal seconds before the end of the time or at a preemption: on to the processes, which save and stop
terminated=
step=
trap 'terminated=1; [[ -z $step ]] || kill -TERM "$step" || true' TERM

# shellcheck disable=SC2016  # SLURM_NODEID is each machine's own
srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 \
  bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' launcher \
  --config_file "$config" --num_machines "$nodes" --num_processes "$processes" \
  --same_network --main_process_ip "${hosts%%$'\n'*}" --main_process_port "$port" \
  -m hf_vlr train "$@" --resume &
step=$!
status=0
wait "$step" || status=$?
if [[ -n $terminated ]]; then
  # the signal ended the first wait, not the step
  status=0
  wait "$step" || status=$?
  if ((status != 0)); then
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$status"
