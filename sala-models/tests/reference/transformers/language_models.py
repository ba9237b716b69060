"""Makes gpt2/exact.safetensors and llama/exact.safetensors: what expected.safetensors has, in float64 throughout.

    python language_models.py        (needs torch and safetensors)

The library computes parts of a float64 model in float32: the loss of both and, in Llama, norms and angles.
Here GPT-2 and Llama are written again with that as a switch. With it they must agree with the library's
numbers to the last digits of float32, which shows that they are the same networks; without it they are exact.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

HERE = Path(__file__).parent


def attention(q, k, v, heads, groups):
    cut = lambda t, n: t.view(*t.shape[:2], n, -1).transpose(1, 2)
    q, k, v = cut(q, heads), cut(k, groups), cut(v, groups)
    return q, k.repeat_interleave(heads // groups, 1), v.repeat_interleave(heads // groups, 1)


def attend(q, k, v):
    length = q.shape[2]
    scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    shares = scores.masked_fill(future, -torch.inf).softmax(-1)
    return (shares @ v).transpose(1, 2).flatten(2)


def gpt2(p, ids, _):
    norm = lambda x, name: F.layer_norm(x, (24,), p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)
    layer = lambda x, name: x @ p[f"{name}.weight"] + p[f"{name}.bias"]
    x = p["transformer.wte.weight"][ids] + p["transformer.wpe.weight"][: ids.shape[1]]
    for i in range(2):
        at = f"transformer.h.{i}"
        q, k, v = layer(norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn").split(24, 2)
        x = x + layer(attend(*attention(q, k, v, 3, 3)), f"{at}.attn.c_proj")
        inner = layer(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")
        x = x + layer(F.gelu(inner, approximate="tanh"), f"{at}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ p["transformer.wte.weight"].T


def llama(p, ids, partly_f32):
    inside = torch.float32 if partly_f32 else torch.float64

    def norm(x, name):
        x = x.to(inside)
        x = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        return p[f"{name}.weight"] * x.double()

    rates = 1 / 10000 ** (torch.arange(0, 4, 2).to(inside) / 4)
    angles = torch.arange(ids.shape[1]).to(inside)[:, None] * rates
    cos, sin = angles.cos().double(), angles.sin().double()

    def turn(x):
        a, b = x.split(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    x = p["model.embed_tokens.weight"][ids]
    for i in range(2):
        at = f"model.layers.{i}"
        layer = lambda x, name: x @ p[f"{at}.{name}_proj.weight"].T
        h = norm(x, f"{at}.input_layernorm")
        parts = [layer(h, f"self_attn.{name}") for name in "qkv"]
        q, k, v = attention(*parts, 6, 2)
        x = x + layer(attend(turn(q), turn(k), v), "self_attn.o")
        h = norm(x, f"{at}.post_attention_layernorm")
        x = x + layer(F.silu(layer(h, "mlp.gate")) * layer(h, "mlp.up"), "mlp.down")
    return norm(x, "model.norm") @ p["lm_head.weight"].T


def evaluate(network, weights, inputs, partly_f32):
    parameters = {name: w.double().requires_grad_() for name, w in weights.items()}
    logits = network(parameters, inputs["input.input_ids"], partly_f32)
    # The last place has nothing to say; left in, as the library has it, it changes sums in float32.
    said = (logits.float() if partly_f32 else logits).flatten(0, 1)
    labels = F.pad(inputs["input.labels"], (0, 1), value=-100)[:, 1:].flatten()
    loss = F.cross_entropy(said, labels)
    loss.backward()
    values = {"logits": logits.detach(), "loss": loss.detach()}
    return values | {f"grad.{name}": p.grad for name, p in parameters.items()}


for name, network in [("gpt2", gpt2), ("llama", llama)]:
    weights = load_file(HERE / name / "model.safetensors")
    published = load_file(HERE / name / "expected.safetensors")
    for key, got in evaluate(network, weights, published, True).items():
        torch.testing.assert_close(got, published[key], rtol=2e-7, atol=1e-8, check_dtype=False)
    save_file(evaluate(network, weights, published, False), HERE / name / "exact.safetensors")
