"""Makes the files of efficientnet-lite0 and pyramidnet20-15-bottleneck.

    python networks.py        (needs torch, timm and safetensors)

EfficientNet-Lite0 is timm's `tf_efficientnet_lite0`. PyramidNet is written here after its paper, with both
kinds of blocks; with basic ones it must agree with pyramidnet110-270.safetensors, which comes from its authors'
code, so what differs is the one block.
"""

from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent


def units(name, shape):
    """Values in (-1, 1) that follow from a name, as in tests/it/cnn_reference.rs."""
    hash = 0xCBF29CE484222325
    for byte in name.encode():
        hash = (hash ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(hash) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy((z >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1.0).reshape(shape)


def parameter(name, shape, norm):
    u, fan_in = units(name, shape), np.prod(shape[1:])
    if len(shape) == 1:
        return norm + 0.1 * u if name.endswith("weight") else 0.1 * u
    return u * (3 / fan_in) ** 0.5 if len(shape) == 2 else u * (6 / fan_in) ** 0.5


class PyramidBlock(nn.Module):
    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        self.stride, self.outputs = stride, width * (4 if bottleneck else 1)
        basic = [(inputs, width, 3, stride), (width, width, 3, 1)]
        sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)] if bottleneck else basic
        self.depth = len(sizes)
        for i, (a, b, kernel, stride) in enumerate(sizes, 1):
            setattr(self, f"bn{i}", nn.BatchNorm2d(a))
            setattr(self, f"conv{i}", nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False))
        setattr(self, f"bn{self.depth + 1}", nn.BatchNorm2d(self.outputs))

    def forward(self, x):
        y = self.conv1(self.bn1(x))
        for i in range(2, self.depth + 1):
            y = getattr(self, f"conv{i}")(getattr(self, f"bn{i}")(y).relu())
        y = getattr(self, f"bn{self.depth + 1}")(y)
        x = F.avg_pool2d(x, 2) if self.stride == 2 else x
        return y + F.pad(x, (0, 0, 0, 0, 0, self.outputs - x.shape[1]))


class PyramidNet(nn.Module):
    def __init__(self, depth, widening, bottleneck, classes):
        super().__init__()
        blocks = (depth - 2) // (9 if bottleneck else 6)
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        channels, width = 16, 16.0
        for group in range(3):
            layers = []
            for i in range(blocks):
                width += widening / (3 * blocks)
                stride = 2 if group > 0 and i == 0 else 1
                layers.append(PyramidBlock(channels, round(width), stride, bottleneck))
                channels = layers[-1].outputs
            setattr(self, f"layer{group + 1}", nn.Sequential(*layers))
        self.bn_final, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)))))
        return self.fc(self.bn_final(x).relu().mean((2, 3)))


def evaluate(network, image, norm):
    network = network.double()
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.copy_(parameter(name, p.shape, norm))
    x, labels = units("input", (4, 3, *image)), torch.tensor([7 * i % 10 for i in range(4)])
    logits = network.train()(x)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    values = {"logits.train": logits.detach(), "loss": loss.detach()}
    for name, p in network.named_parameters():
        values[f"grad_norm.{name}"] = p.grad.norm()
        values[f"grad_head.{name}"] = p.grad.flatten()[:8].clone()
    for name, buffer in network.named_buffers():
        if not name.endswith("num_batches_tracked"):
            values[f"buffer.{name}"] = buffer.clone()
    with torch.no_grad():
        values["logits.eval"] = network.eval()(x)
    return values


def write(name, make, image, norm):
    counts = {f"params_{c}": str(sum(p.numel() for p in make(c).parameters())) for c in (10, 100)}
    network = make(10)
    lines = [f"{key} {'x'.join(map(str, t.shape)) or 'scalar'}" for key, t in network.state_dict().items()]
    (HERE / f"{name}.layout.txt").write_text("\n".join(lines) + "\n")
    save_file(evaluate(network, image, norm), HERE / f"{name}.safetensors", counts)


published = load_file(HERE / "pyramidnet110-270.safetensors")
for key, value in evaluate(PyramidNet(110, 270, False, 10), (32, 32), 1.0).items():
    torch.testing.assert_close(value, published[key].reshape(value.shape), rtol=1e-9, atol=1e-9)

write("pyramidnet20-15-bottleneck", lambda classes: PyramidNet(20, 15, True, classes), (32, 32), 1.0)
# Sides that are even in some stages and odd in others, and norms that bring values beyond 6.
write("efficientnet-lite0", lambda classes: timm.create_model("tf_efficientnet_lite0", num_classes=classes), (72, 50), 2.0)
