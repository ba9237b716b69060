#!/usr/bin/env python3
"""What the host does for training steps on a card, measured without one.

    host_cost.py SALA_BENCH NULL [--precision bf16] [--workloads resnet18-b128,wrn-28-10,vit-small,bert-base]

SALA_BENCH was built with `cuda,cudnn`, NULL is a folder that scripts/cuda/null.py made. Prints, for each workload, the
milliseconds of the host in a forward pass and in a step (medians), and what it asks the card for in a round of `speed`,
ten forward passes and thirteen steps: launches, memory that is set, copied and allocated, and uploads of more than
64 KiB, before which the host waits for the card. Matrix products and convolutions
come on top, as many as before: cuBLAS and cuDNN launch by themselves.
"""

import argparse
import collections
import json
import os
import statistics
import subprocess
import tempfile

ROUNDS = 10
ASKED = {
    "launches": ["launch"],
    "sets": ["set"],
    "uploads": ["upload"],
    "that wait": ["upload that waits"],
    "downloads": ["download"],
    "copies": ["copy on the card"],
    "allocations": ["allocate"],
}


def serve(options, workload, rounds, log=None):
    """The rounds of a worker, and what it asked for."""
    command = [options.program, "speed-worker", "--device", "cuda"]
    command += ["--precision", options.precision, "--workload", workload]
    environment = dict(os.environ, LD_LIBRARY_PATH=options.null, RAYON_NUM_THREADS="1")
    if log:
        environment["NULL_CUDA_LOG"] = log
    done = subprocess.run(
        command, env=environment, input="go\n" * rounds, text=True, check=True, stdout=subprocess.PIPE
    )
    return [json.loads(line) for line in done.stdout.splitlines()[1:]]


def asked(options, workload, rounds):
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        log = os.path.join(folder, "calls")
        serve(options, workload, rounds, log)
        for line in open(log):
            number, _, name = line.strip().partition(" ")
            if number.isdigit():
                counts[name] += int(number)
    if counts["of them dead"]:
        raise SystemExit(f"{workload}: addresses that are nobody's, see above")
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("null")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--workloads", default="resnet18-b128,wrn-28-10,vit-small,bert-base")
    options = parser.parse_args()
    print("| workload | forward ms | step ms |", *(f"{name} |" for name in ASKED))
    print("|---|" + "---|" * (2 + len(ASKED)))
    for workload in options.workloads.split(","):
        rounds = serve(options, workload, ROUNDS)
        times = [statistics.median(ms for r in rounds for ms in r[kind]) for kind in ("forward_ms", "step_ms")]
        first, all_rounds = asked(options, workload, 1), asked(options, workload, 1 + ROUNDS)
        of_round = all_rounds - first
        counts = (sum(of_round[name] for name in names) / ROUNDS for names in ASKED.values())
        print(f"| {workload} |", *(f"{ms:.2f} |" for ms in times), *(f"{count:.0f} |" for count in counts), flush=True)


if __name__ == "__main__":
    main()
