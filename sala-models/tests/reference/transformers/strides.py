"""Makes strides.safetensors: what resnet-bottleneck says with its strides in other places.

    python strides.py        (needs torch, transformers and safetensors)

`NAME.logits` is for the images and the weights of that model, in evaluation mode and float64; the metadata has the
keys that each case changes in its config.json.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig, ResNetForImageClassification

FOLDER = Path(__file__).parent / "resnet-bottleneck"
FIRST, EARLY = {"downsample_in_first_stage": True}, {"downsample_in_bottleneck": True}

images = load_file(FOLDER / "expected.safetensors")["input.pixel_values"]
tensors, metadata = {}, {}
for name, changes in {"first_stage": FIRST, "bottleneck": EARLY, "both": FIRST | EARLY}.items():
    config = ResNetConfig.from_pretrained(FOLDER, **changes)
    model = ResNetForImageClassification.from_pretrained(FOLDER, config=config).double().eval()
    with torch.no_grad():
        tensors[f"{name}.logits"] = model(images.double()).logits
    metadata[name] = json.dumps(changes)
save_file(tensors, FOLDER.parent / "strides.safetensors", metadata)
