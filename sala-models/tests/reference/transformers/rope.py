"""Makes rope.safetensors: what Llama's rotary angles are when they are stretched.

    python rope.py        (needs torch, transformers and safetensors)

For each case of a configuration, `NAME.speeds` is what pairs of features turn by a position and
`NAME.scale` what multiplies cosine and sine, both in float32 as the library computes them. For cases of the size of
the model in `llama`, `NAME.logits` is what that model says with this configuration. The metadata has the keys that
each case adds to that model's config.json.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

HERE = Path(__file__).parent

published = {"hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128, "max_position_embeddings": 131072}
llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
tiny3 = llama3 | {"original_max_position_embeddings": 16, "low_freq_factor": 0.5}
yarn = {"factor": 4.0, "original_max_position_embeddings": 32768}
tiny_yarn = {"factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 2.0, "beta_slow": 0.01}
CASES = {
    # As Llama 3.1 is published, and the same in the new style.
    "llama3_old": published | {"rope_theta": 500000.0, "rope_scaling": llama3 | {"rope_type": "llama3"}},
    "llama3_new": published | {"rope_parameters": llama3 | {"rope_type": "llama3", "rope_theta": 500000.0}},
    "linear_old": published | {"rope_scaling": {"type": "linear", "factor": 2.5}},
    "dynamic": published | {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "rope_theta": 1e6},
    "yarn": published | {"rope_scaling": yarn | {"rope_type": "yarn"}, "rope_theta": 1e6},
    "yarn_fractions": published | {"rope_parameters": yarn | {"rope_type": "yarn", "rope_theta": 1e6, "truncate": False}},
    "yarn_exponents": published | {
        "rope_parameters": yarn | {"rope_type": "yarn", "rope_theta": 1e4, "mscale": 0.7, "mscale_all_dim": 1.3}
    },
    "yarn_bounds": published | {
        "rope_scaling": yarn | {"type": "yarn", "beta_fast": 20.0, "beta_slow": 3.0, "attention_factor": 1.25}
    },
    "yarn_first_length": published | {
        "max_position_embeddings": 4096, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    },
    "model_linear": {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}},
    "model_llama3": {"rope_parameters": tiny3 | {"rope_type": "llama3", "rope_theta": 100.0}},
    "model_dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
    "model_yarn": {"rope_parameters": tiny_yarn | {"rope_type": "yarn", "rope_theta": 100.0}},
}

config = json.loads((HERE / "llama/config.json").read_text())
inputs = load_file(HERE / "llama/expected.safetensors")["input.input_ids"]
tensors, metadata = {}, {}
for name, changes in CASES.items():
    metadata[name] = json.dumps(changes)
    # Loaded as a file would be, so that old keys are understood.
    changes = json.loads(metadata[name])
    old = {} if "rope_parameters" in changes else {"rope_parameters": None}
    case = LlamaConfig.from_dict(config | old | changes)
    rotary = LlamaRotaryEmbedding(case)
    tensors[f"{name}.speeds"] = rotary.inv_freq.clone()
    tensors[f"{name}.scale"] = torch.tensor(float(rotary.attention_scaling))
    if name.startswith("model_"):
        model = LlamaForCausalLM(case)
        model.load_state_dict(load_file(HERE / "llama/model.safetensors"))
        with torch.no_grad():
            tensors[f"{name}.logits"] = model.double()(inputs).logits
save_file(tensors, HERE / "rope.safetensors", metadata)
