"""Makes single.json: how far the library's numbers in float32 lie from those in float64.

    python single.py        (needs torch, transformers and safetensors)

For each of the eight models and each kind of number: the distance of all entries together over their length, in
training mode, as the expected values were made.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import transformers
from safetensors.torch import load_file

HERE = Path(__file__).parent


def stored(model, values):
    """Values of parameters under the names that the library stores them by, which are not always its own."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=values)
        return load_file(Path(folder) / "model.safetensors")


single = {}
for folder in sorted(path.parent for path in HERE.glob("*/config.json")):
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).float().train()
    wanted = load_file(folder / "expected.safetensors")
    exact = folder / "exact.safetensors"
    wanted |= load_file(exact) if exact.exists() else {}
    inputs = {key.removeprefix("input."): value for key, value in wanted.items() if key.startswith("input.")}
    floats = {key: value.float() if value.is_floating_point() else value for key, value in inputs.items()}
    output = model(**floats)
    output.loss.backward()
    got = {"logits": output.logits.detach(), "loss": output.loss.detach()}
    values = {name: p.grad for name, p in model.named_parameters()}
    values |= {name: b for name, b in model.named_buffers() if "running" in name}
    for name, value in stored(model, values).items():
        got[f"{'buffer' if 'running' in name else 'grad'}.{name}"] = value
    off, length = {}, {}
    for key, value in got.items():
        kind = key.split(".")[0]
        off[kind] = off.get(kind, 0) + (value.double() - wanted[key]).square().sum().item()
        length[kind] = length.get(kind, 0) + wanted[key].square().sum().item()
    single[folder.name] = {kind: (off[kind] / length[kind]) ** 0.5 for kind in off}
(HERE / "single.json").write_text(json.dumps(single, indent=1) + "\n")
