#!/usr/bin/env python3
"""Reads the events of `sala-bench … --tensorboard` with TensorBoard's own reader and checks them against the records.

Usage: read_events.py RUN_DIRECTORY        (needs `pip install tensorboard`; TensorFlow is not needed)

For every run the validation scores of its record must be among the events, at the steps of its epochs, and the
losses of its steps must be there once each.
"""

import json
import math
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def check(directory: pathlib.Path) -> int:
    runs = sorted(directory.glob("runs/*.jsonl"))
    assert runs, f"no complete runs in {directory}"
    for run in runs:
        lines = [json.loads(line) for line in run.read_text().splitlines()]
        epochs = [line for line in lines if line["record"] == "epoch"]
        # 0: keep all events.
        events = EventAccumulator(str(directory / "tensorboard" / run.stem), size_guidance={"scalars": 0})
        events.Reload()
        tags = events.Tags()["scalars"]
        losses = events.Scalars("train/loss")
        steps = [event.step for event in losses]
        assert steps == sorted(set(steps)), f"{run.stem}: a step twice"
        assert all(math.isfinite(event.value) for event in losses)
        for tag, of in [
            ("validation/loss", lambda e: e["validation"]["loss"]),
            ("validation/accuracy", lambda e: e["validation"].get("accuracy")),
            ("epoch/train_loss", lambda e: e["train_loss"]),
        ]:
            wanted = [(e["steps"], of(e)) for e in epochs if of(e) is not None]
            got = [(event.step, event.value) for event in events.Scalars(tag)] if wanted else []
            assert [s for s, _ in got] == [s for s, _ in wanted], f"{run.stem}, {tag}: {got} {wanted}"
            for (_, a), (_, b) in zip(got, wanted):
                assert math.isclose(a, b, rel_tol=1e-6), f"{run.stem}, {tag}: {a} {b}"
        print(f"{run.stem}: {len(losses)} steps, {len(epochs)} epochs; {', '.join(sorted(tags))}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(check(pathlib.Path(sys.argv[1])))
