#!/usr/bin/env bash
# Train on several machines with torchrun. Start the same line on each of them; MAIN is one that the others can reach:
#   NODES=2 DEVICES=8 MAIN=node1:29500 examples/many_nodes/torchrun.sh \
#     --config seam_ppc --data.init_args.root /data/VOC2012
# NODES machines run DEVICES processes each, one a GPU. The options are those of `wsss-contrast fit`.
set -euo pipefail
: "${NODES:?number of machines}" "${DEVICES:?processes on each}" "${MAIN:?host:port of one of them}"

exec torchrun --nnodes="$NODES" --nproc-per-node="$DEVICES" \
  --rdzv-backend=c10d --rdzv-endpoint="$MAIN" --rdzv-id=wsss_contrast \
  -m wsss_contrast.cli fit "$@" --trainer.num_nodes="$NODES" --trainer.devices="$DEVICES"
