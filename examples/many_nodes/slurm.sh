#!/usr/bin/env bash
# Train on several machines of a SLURM cluster. The options are those of `wsss-contrast fit`:
#   sbatch examples/many_nodes/slurm.sh --config seam_ppc --data.init_args.root /data/VOC2012
# Options of sbatch before the script's name win over these lines.
#SBATCH --job-name=wsss_contrast
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
# A task is a process, one a GPU. Each must see all GPUs of its machine, so no `--gpus-per-task`: Lightning takes the
# one of the task's number.
set -euo pipefail

# If a process dies, the others would wait for it: end them.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
  wsss-contrast fit "$@" --trainer.num_nodes="$SLURM_NNODES" --trainer.devices="$SLURM_NTASKS_PER_NODE"
