#!/usr/bin/env bash
# A run on the 8 GPUs of one node under SLURM: docs/gpu.md. Not run there yet.
#
#   sbatch scripts/gpu_slurm.sh --config=configs/grpo_tarl.py:qwen3_8b_lora \
#     --config.model.pretrained=DIR --workdir=RUN
#
# Give a --workdir on a file system that outlives the node. When the time is over, the run saves its
# step, and the job is queued again and goes on.
#SBATCH --job-name=tarl
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --output=tarl-%j.log
set -uo pipefail

cd "${SLURM_SUBMIT_DIR:?start this with sbatch}" || exit 2
srun .venv/bin/python -m tarl_jax.main --config.mesh.data=1 --config.mesh.fsdp=-1 "$@"
status=$?
if [ "$status" -eq 143 ]; then # SIGTERM: saved, and not yet at its end
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
