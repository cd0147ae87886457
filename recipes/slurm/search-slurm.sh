#!/bin/bash
# One search by four workers: a SLURM array whose tasks all run the same command.
#
#   manticore cp search-slurm . && sbatch search-slurm.sh
#
# Needs a PostgreSQL that all nodes reach, and a folder on a disk that all nodes see: workers go on with each other's
# candidates, whose checkpoints lie in it. The database's password stands in ~/.pgpass (or PGPASSWORD), never here.
# A task that is killed or preempted is missed after two minutes; another one takes its trial up. Tasks that start
# late, or when all is done, find what the others have found. Nothing depends on how many tasks there are.
#SBATCH --job-name=manticore-search
#SBATCH --array=0-3
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:1
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60
#SBATCH --output=search-%A_%a.log
set -euo pipefail

HYBRID=${HYBRID:-/shared/aligned}
TASK=${TASK:-text}
OUT=${OUT:-/shared/searched}
STORAGE=${STORAGE:-postgresql://manticore@database.example:5432/manticore}

# the same number of threads everywhere, else the last bits of the scores differ
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-4}

exec srun manticore search "$HYBRID" --task "$TASK" --storage "$STORAGE" -o "$OUT"
