"""Values and gradients of PyTorch for the operations in `src/ops`, in float64.

Each case is a function of named inputs. Its output `y` is multiplied by random numbers `w` and summed,
and that sum is differentiated. The file holds `<case>.<input>`, `<case>.y`, `<case>.w` and
`<case>.grad.<input>`; integer inputs have no gradient. Settings of a case stand here and in the test.
"""

import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

generator = torch.Generator().manual_seed(1)
tensors = {}


def normal(*shape, scale=1.0):
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def case(name, function, **inputs):
    leaves = {
        key: value.clone().requires_grad_(value.is_floating_point())
        for key, value in inputs.items()
    }
    y = function(**leaves)
    w = normal(*y.shape)
    (y * w).sum().backward()
    tensors[f"{name}.y"], tensors[f"{name}.w"] = y.detach(), w
    for key, leaf in leaves.items():
        tensors[f"{name}.{key}"] = inputs[key]
        if leaf.requires_grad:
            tensors[f"{name}.grad.{key}"] = leaf.grad


# Normalisation, with rows far from zero and an eps that is felt.
row = dict(x=normal(2, 3, 5) + 3.0, weight=normal(5), bias=normal(5))
case("layer_norm", lambda x, weight, bias: F.layer_norm(x, (5,), weight, bias, 0.1), **row)
del row["bias"]
case("layer_norm_no_bias", lambda x, weight: F.layer_norm(x, (5,), weight, None, 0.1), **row)
case("rms_norm", lambda x, weight: F.rms_norm(x, (5,), weight, 0.1), **row)

# Softmax over the dimension in the middle.
x = normal(2, 4, 3, scale=3.0)
seen = torch.rand(2, 4, 3, generator=generator) < 0.6
seen[:, 0] = True
case("softmax", lambda x: F.softmax(x, 1), x=x)
case("log_softmax", lambda x: F.log_softmax(x, 1), x=x)
case(
    "masked_softmax",
    lambda x, mask: F.softmax(x.masked_fill(mask == 0, -torch.inf), 1),
    x=x,
    mask=seen.to(torch.uint8),
)
case("biased_softmax", lambda x, mask: F.softmax(x + mask, 1), x=x, mask=normal(4, 1))

# Cross entropy.
logits, classes = normal(6, 4, scale=3.0), torch.tensor([0, 3, 1, 3, 2, 0])
soft = torch.softmax(normal(6, 4), 1)
some = torch.where(torch.tensor([0, 1, 0, 0, 1, 0]) == 1, -100, classes)


def entropy(**settings):
    return lambda logits, targets: F.cross_entropy(logits, targets, **settings)


case("entropy", entropy(), logits=logits, targets=classes)
case("entropy_smoothed", entropy(label_smoothing=0.2), logits=logits, targets=classes)
case("entropy_ignored", entropy(label_smoothing=0.2), logits=logits, targets=some)
case("entropy_soft", entropy(), logits=logits, targets=soft)
case("entropy_soft_smoothed", entropy(label_smoothing=0.2), logits=logits, targets=soft)

# Activations, in the tails as well.
x = torch.cat([normal(3, 5, scale=2.0), torch.tensor([[-8.0, -1e-3, 0.0, 1e-3, 8.0]]).double()])
case("gelu", lambda x: F.gelu(x), x=x)
case("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), x=x)
case("silu", lambda x: F.silu(x), x=x)


# Rotary embedding as a product of complex numbers; positions 7 to 10.
def interleaved(x):
    features = x.shape[-1]
    frequencies = 100.0 ** (-torch.arange(0, features, 2).double() / features)
    angles = torch.outer(torch.arange(7, 7 + x.shape[-2]).double(), frequencies)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def halves(x):
    paired = x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    return interleaved(paired).unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


x = normal(2, 3, 4, 6)
case("rope_interleaved", interleaved, x=x)
case("rope_halves", halves, x=x)

indices = torch.tensor([[4, 0, 4], [2, 4, 0]])
case("embedding", lambda indices, table: F.embedding(indices, table), indices=indices, table=normal(5, 3))


# Attention: heads of queries 4, of keys 2; 3 queries, 5 keys, values of another size.
def attention(**settings):
    def run(q, k, v, mask=None):
        mask = mask.bool() if mask is not None and not mask.is_floating_point() else mask
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True, **settings)

    return run


qkv = dict(q=normal(2, 4, 3, 6), k=normal(2, 2, 5, 6), v=normal(2, 2, 5, 3))
padding = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], dtype=torch.uint8)[:, None, None]
case("attention", attention(), **qkv)
case("attention_scaled", attention(scale=0.7), **qkv)
case("attention_padded", attention(), **qkv, mask=padding)
case("attention_biased", attention(), **qkv, mask=normal(1, 4, 3, 5))
square = dict(q=normal(2, 2, 4, 3), k=normal(2, 2, 4, 3), v=normal(2, 2, 4, 3))
case("attention_causal", attention(is_causal=True), **square)

# Pooling: kernel, stride, padding, ceil_mode, count_include_pad.
POOLS = {
    "overlapping": ((3, 2), (1, 2), (0, 0), False, True),
    "padded": ((3, 3), (2, 2), (1, 1), False, True),
    "real_places": ((3, 3), (2, 2), (1, 1), False, False),
    "ceil": ((3, 2), (2, 3), (1, 0), True, True),
    "ceil_real_places": ((3, 2), (2, 3), (1, 1), True, False),
    "gaps": ((2, 2), (3, 4), (1, 1), True, True),
    "beyond": ((4, 4), (3, 3), (2, 2), True, True),
}
x = normal(2, 2, 6, 5)
for name, (kernel, stride, pad, ceil, include) in POOLS.items():
    case(f"max_{name}", lambda x: F.max_pool2d(x, kernel, stride, pad, 1, ceil), x=x)
    case(f"average_{name}", lambda x: F.avg_pool2d(x, kernel, stride, pad, ceil, include), x=x)
# Few different values, so that many windows have several maxima.
ties = torch.randint(0, 2, (2, 2, 6, 5), generator=generator).double()
case("max_ties", lambda x: F.max_pool2d(x, 3, 2, 1), x=ties)
for outputs in [(1, 1), (4, 3), (7, 2)]:
    name = "adaptive_{}_{}".format(*outputs)
    case(name, lambda x: F.adaptive_avg_pool2d(x, outputs), x=x)

# Linear layers and what clips.
case("linear", lambda x, weight, bias: F.linear(x, weight, bias), x=normal(2, 3, 5), weight=normal(4, 5), bias=normal(4))
case("linear_no_bias", lambda x, weight: F.linear(x, weight), x=normal(1, 5), weight=normal(1, 5))
case("add", lambda a, b: a + b, a=normal(2, 3), b=normal(2, 3))
# At 0, and for relu6 at 6, both derivatives are 0.
x = torch.cat([normal(3, 5, scale=5.0), torch.tensor([[-1.0, 0.0, 6.0, 7.0, 5.0]]).double()])
case("relu", lambda x: F.relu(x), x=x)
case("relu6", lambda x: F.relu6(x), x=x)

# Convolution: kernel, stride, padding, dilation, groups; of 4 channels to 8.
CONVOLUTIONS = {
    "plain": ((3, 2), (1, 1), (0, 0), (1, 1), 1),
    "same": ((3, 3), (1, 1), (1, 1), (1, 1), 1),
    "strided": ((3, 3), (2, 3), (1, 0), (1, 1), 1),
    "pointwise": ((1, 1), (2, 2), (0, 0), (1, 1), 1),
    "dilated": ((2, 3), (1, 2), (2, 2), (3, 2), 1),
    "grouped": ((3, 3), (2, 1), (1, 1), (1, 1), 2),
    "depthwise": ((3, 3), (1, 2), (1, 1), (1, 1), 4),
}
x = normal(2, 4, 7, 6)
for name, (kernel, stride, pad, dilation, groups) in CONVOLUTIONS.items():
    case(
        f"conv_{name}",
        lambda x, weight, bias: F.conv2d(x, weight, bias, stride, pad, dilation, groups),
        x=x,
        weight=normal(8, 4 // groups, *kernel),
        bias=normal(8),
    )


# Batch norm, whose statistics are buffers: what they were, and what training makes of them.
def batch_norm(training, finish):
    def run(x, weight, bias, residual=None):
        running = mean.clone(), variance.clone()
        y = F.batch_norm(x, *running, weight, bias, training, 0.1, 1e-3)
        tensors["batch_norm.mean_after"], tensors["batch_norm.var_after"] = running if training else (mean, variance)
        return finish(y, residual)

    return run


mean, variance = normal(3), normal(3).square() + 0.5
images = dict(x=normal(2, 3, 4, 5) + 2.0, weight=normal(3), bias=normal(3))
tensors["batch_norm.mean"], tensors["batch_norm.var"] = mean, variance
case("batch_norm_eval", batch_norm(False, lambda y, _: y), **images)
case("batch_norm_relu", batch_norm(True, lambda y, _: F.relu(y)), **images)
case("batch_norm_add_relu", batch_norm(True, lambda y, r: F.relu(y + r)), **images, residual=normal(2, 3, 4, 5))
case("batch_norm_train", batch_norm(True, lambda y, _: y), **images)

target = pathlib.Path(__file__).with_name("ops.safetensors")
save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, target, {"torch": torch.__version__})
