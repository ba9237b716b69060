"""Loads the folders that `examples/save_published.rs` wrote with `transformers` and compares.

    python reload.py ORIGINALS SAVED

Needs torch, transformers and safetensors. For every model in SAVED: nothing may be missing or surplus, all
parameters and running statistics must be those of the folder in ORIGINALS bit by bit, and so must the logits
of `transformers`; its logits and those that this project computed in f32 may differ by rounding only. Only the
counts of batches (`num_batches_tracked`), which nothing here keeps, may be others.

A folder NAME-mean holds NAME as a classifier by the mean of the tokens, which `transformers` has no class for: this
project's logits are compared with those of `mean_pooled`, as `docs/finetuning.md` has it.
"""

import sys
from pathlib import Path

import safetensors
import torch
import transformers
from safetensors.torch import load_file

ROUNDING = 1e-6


def load(folder: Path):
    """The class that the configuration names, with the folder's weights, and what it had to say."""
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    model, info = kind.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    return model.eval(), info


def mean_pooled(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of a classifier by the mean of each text's tokens."""
    hidden = model.base_model(**batch).last_hidden_state
    counts = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * counts).sum(1) / counts.sum(1).clamp(min=1)
    if model.config.model_type == "roberta":
        return model.classifier(mean.unsqueeze(1))  # takes the first of the tokens that it is given
    if model.config.model_type == "distilbert":
        mean = torch.relu(model.pre_classifier(mean))
    return model.classifier(mean)  # BERT's pooler, of which transformers says that it starts afresh, is not used


def answer(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def inputs_of(original: Path) -> dict[str, torch.Tensor]:
    expected = load_file(original / "expected.safetensors")
    inputs = {n.removeprefix("input."): t for n, t in expected.items() if n.startswith("input.")}
    inputs.pop("labels")
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].float()
    return inputs


def distance(saved: Path, logits: torch.Tensor) -> float:
    """How far this project's logits are from these, which may be rounding only."""
    ours = load_file(saved / "answer.safetensors")["logits"]
    distance = (logits - ours).abs().max().item()
    allowed = ROUNDING * max(1.0, logits.abs().max().item())
    if not distance <= allowed:
        raise SystemExit(f"{saved}: wanted logits within {allowed:.1e}, got {distance:.1e}")
    return distance


def compare_mean(original: Path, saved: Path) -> str:
    inputs = inputs_of(original)
    model, _ = load(saved)
    with torch.no_grad():
        logits = mean_pooled(model, inputs)
    if torch.allclose(logits, answer(model, inputs), atol=1e-3):
        raise SystemExit(f"{saved}: the mean makes no difference, so nothing is compared")
    return f"{saved.name:18} mean_pooled: this project's logits within {distance(saved, logits):.1e}"


def compare(original: Path, saved: Path) -> str:
    inputs = inputs_of(original)
    (one, _), (other, info) = load(original), load(saved)
    odd = {kind: names for kind, names in info.items() if names}
    if odd:
        raise SystemExit(f"{saved}: {odd}")
    state, others = one.state_dict(), other.state_dict()
    for name in sorted(set(state) | set(others)):
        same = name.endswith("num_batches_tracked") or torch.equal(state[name], others[name])
        if not same:
            raise SystemExit(f"{saved}: {name} is another")
    logits = answer(other, inputs)
    if not torch.equal(logits, answer(one, inputs)):
        raise SystemExit(f"{saved}: logits of another model")
    return (
        f"{saved.name:18} {type(other).__name__:36} {len(others):3} tensors and logits bit by bit, "
        f"this project's logits within {distance(saved, logits):.1e}"
    )


def main() -> None:
    originals, saved = map(Path, sys.argv[1:])
    versions = (transformers.__version__, torch.__version__, safetensors.__version__)
    print("transformers {}, torch {}, safetensors {}".format(*versions))
    for folder in sorted(saved.iterdir()):
        name = folder.name.removesuffix("-mean")
        how = compare if name == folder.name else compare_mean
        print(how(originals / name, folder))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main()
