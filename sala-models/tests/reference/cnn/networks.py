"""Makes the files of efficientnet-lite0 and pyramidnet20-15-bottleneck, and single.json.

    python networks.py        (needs torch, timm and safetensors)

EfficientNet-Lite0 is timm's `tf_efficientnet_lite0`. The other networks are written here after their papers; those
of which this folder has the published numbers must agree with them. So must PyramidNet with basic blocks: with
bottlenecks what differs is the one block.

single.json says how far PyTorch's numbers in float32 lie from those in float64, for each network and kind of
number: the distance of all entries together over their length. Rounding is magnified by depth, by batch norm
over few values, and wherever it moves a value across zero before a relu.
"""

import json
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


class ResidualBlock(nn.Module):
    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        self.outputs = width * (4 if bottleneck else 1)
        basic = [(inputs, width, 3, stride), (width, width, 3, 1)]
        sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)] if bottleneck else basic
        self.depth = len(sizes)
        for i, (a, b, kernel, step) in enumerate(sizes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != self.outputs:
            conv = nn.Conv2d(inputs, self.outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(self.outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.depth else y
        return (y + self.shortcut(x)).relu()


class ResNet(nn.Module):
    def __init__(self, depths, bottleneck, classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        channels = 64
        for stage, depth in enumerate(depths):
            layers = []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(ResidualBlock(channels, 64 << stage, stride, bottleneck))
                channels = layers[-1].outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.linear(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if inputs != width else None

    def forward(self, x):
        a = self.bn1(x).relu()
        y = self.conv2(self.bn2(self.conv1(a)).relu())
        return y + (self.convShortcut(a) if self.convShortcut else x)


class WideResNet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1, channels = nn.Conv2d(3, 16, 3, 1, 1, bias=False), 16
        for group, width in enumerate((160, 320, 640), 1):
            layers = []
            for i in range(4):
                layers.append(WideBlock(channels, width, 2 if group > 1 and i == 0 else 1))
                channels = width
            setattr(self, f"block{group}", nn.ModuleDict({"layer": nn.Sequential(*layers)}))
        self.bn1, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, classes)

    def forward(self, x):
        x = self.conv1(x)
        for block in (self.block1, self.block2, self.block3):
            x = block["layer"](x)
        return self.fc(self.bn1(x).relu().mean((2, 3)))


def evaluate(network, image, norm, dtype=torch.float64):
    network = network.to(dtype)
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.copy_(parameter(name, p.shape, norm))
    x, labels = units("input", (4, 3, *image)).to(dtype), torch.tensor([7 * i % 10 for i in range(4)])
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


def distances(got, wanted):
    """For each kind of number, how far all of them together are off."""
    off, length = {}, {}
    for key, exact in wanted.items():
        kind = key if key.startswith("logits") else key.split(".")[0]
        off[kind] = off.get(kind, 0) + (got[key].double() - exact).square().sum().item()
        length[kind] = length.get(kind, 0) + exact.square().sum().item()
    return {kind: (off[kind] / length[kind]) ** 0.5 for kind in off}


SMALL = ((32, 32), 1.0)
NETWORKS = {
    "resnet18": (lambda classes: ResNet((2, 2, 2, 2), False, classes), *SMALL),
    "resnet50": (lambda classes: ResNet((3, 4, 6, 3), True, classes), *SMALL),
    "resnet101": (lambda classes: ResNet((3, 4, 23, 3), True, classes), *SMALL),
    "wideresnet28-10": (WideResNet, *SMALL),
    "pyramidnet110-270": (lambda classes: PyramidNet(110, 270, False, classes), *SMALL),
    "pyramidnet20-15-bottleneck": (lambda classes: PyramidNet(20, 15, True, classes), *SMALL),
    # Sides that are even in some stages and odd in others, and norms that bring values beyond 6.
    "efficientnet-lite0": (lambda classes: timm.create_model("tf_efficientnet_lite0", num_classes=classes), (72, 50), 2.0),
}
single = {}
for name, (make, image, norm) in NETWORKS.items():
    if name in ("pyramidnet20-15-bottleneck", "efficientnet-lite0"):
        write(name, make, image, norm)
    exact = load_file(HERE / f"{name}.safetensors")
    for key, value in evaluate(make(10), image, norm).items():
        torch.testing.assert_close(value, exact[key].reshape(value.shape), rtol=1e-9, atol=1e-9)
    got = evaluate(make(10), image, norm, torch.float32)
    single[name] = distances(got, {key: exact[key].reshape(got[key].shape) for key in exact})
(HERE / "single.json").write_text(json.dumps(single, indent=1) + "\n")
