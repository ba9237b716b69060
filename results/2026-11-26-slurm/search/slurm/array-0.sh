#!/bin/bash
# Runs of fashion-mnist-noise-search, one a task; cells.tsv beside this file says which. What is complete by then is not run again.
#SBATCH --job-name=fashion-mnist-noise-search
#SBATCH --array=0,3-31
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --output="/srv/trial/search/slurm/logs/%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@30
set -euo pipefail
cd '/srv/trial'
export RAYON_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
exec '/usr/local/bin/sala-bench' cell --out '/srv/trial/search' --index "$((0 + SLURM_ARRAY_TASK_ID))"
