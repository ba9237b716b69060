#!/usr/bin/env bash
# What made transcript.txt and search/, in an empty folder with space.toml and `sala-bench` on the path, after
# `scripts/slurm_local.sh start`:   bash transcript.sh > transcript.txt
export SLURM_CONF=/tmp/slurm-local/slurm.conf COLUMNS=120
say() { printf '$ %s\n' "$*"; eval "$*" 2>&1; }
wait_for() { while [ "$(squeue --noheader | wc -l)" -gt 0 ]; do sleep 1; done; }
say sinfo
say "sala-bench sweep --search space.toml --trials 4 --studies 2 --optimizers sgd,sala-quarter --epochs 5 --emit slurm --cpus-per-task 1 --out search"
say cat search/slurm/array-0.sh
say head -5 search/slurm/cells.tsv
say sbatch search/slurm/array-0.sh
sleep 6
say squeue
sleep 4
echo "# One task is cancelled while it runs, and the array as a whole when some of it is complete:"
running=$(squeue --noheader --states=R --format=%i | head -1)
say scancel "$running"
sleep 12
jobs=$(squeue --noheader --format=%F | sort -u | head -1)
[ -n "$jobs" ] && say scancel "$jobs"
wait_for
say "ls search/runs/*.jsonl | wc -l"
say "tail -n 2 search/slurm/logs/${running/_/_}.log"
say "sala-bench sweep --resume --out search --emit slurm --cpus-per-task 1"
say "grep -e --array= search/slurm/array-0.sh"
say sbatch search/slurm/array-0.sh
wait_for
say "ls search/runs/*.jsonl | wc -l"
say "sala-bench sweep --resume --out search"
say "sala-bench report search --out report | head -n 24"
