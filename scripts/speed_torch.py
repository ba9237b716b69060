"""PyTorch's side of `sala-bench speed`: the same networks and batches, a round whenever it is asked for.

    python speed_torch.py --workload resnet18-b32 --threads 2 --repeats 1 [--channels-last]
    python speed_torch.py --method adamw --size 100M --threads 2 --repeats 1
        [--device cpu|cuda|mps] [--number 0] [--precision f32|tf32|bf16]

Says what it is in one line of JSON when the network is built and warm, then answers every line `go` with
the milliseconds of a forward pass (loss included) and of a training step (forward, backward, fused SGD
with momentum), or of the fused update alone, until its input ends. bf16 is autocast over weights of f32; on
CUDA cuDNN tries its algorithms (`cudnn.benchmark`). Nothing but torch is needed.
"""

import argparse
import json
import math
import resource
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

WARM_UP = 2
VOCABULARY = 30522
UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}


def peak_mib():
    """The most memory that this process has used."""
    try:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def conv(inputs, outputs, kernel, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class ResNetBlock(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(conv(inputs, width, 1, stride), nn.BatchNorm2d(width))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class ResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 3), nn.BatchNorm2d(64)
        blocks, inputs = [], 64
        for width, first in [(64, 1), (128, 2), (256, 2), (512, 2)]:
            for stride in [first, 1]:
                blocks.append(ResNetBlock(inputs, width, stride))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(512, 10)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, width, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3)
        self.shortcut = conv(inputs, width, 1, stride) if inputs != width else None

    def forward(self, x):
        a = F.relu(self.bn1(x), inplace=True)
        y = self.conv2(F.relu(self.bn2(self.conv1(a)), inplace=True))
        return y + (x if self.shortcut is None else self.shortcut(a))


class WideResNet(nn.Module):
    def __init__(self, depth, widening):
        super().__init__()
        blocks, inputs = [], 16
        for width, first in [(16, 1), (32, 2), (64, 2)]:
            for i in range((depth - 4) // 6):
                blocks.append(WideBlock(inputs, width * widening, first if i == 0 else 1))
                inputs = width * widening
        self.conv1, self.blocks = conv(3, 16, 3), nn.Sequential(*blocks)
        self.bn, self.fc = nn.BatchNorm2d(inputs), nn.Linear(inputs, 10)

    def forward(self, x):
        x = F.relu(self.bn(self.blocks(self.conv1(x))), inplace=True)
        return self.fc(x.mean((2, 3)))


class SmallCnn(nn.Module):
    def __init__(self):
        super().__init__()
        layers, inputs = [], 3
        for width in [32, 64, 128]:
            layers += [conv(inputs, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            layers.append(nn.MaxPool2d(2))
            inputs = width
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(128 * 4 * 4, 10)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class Attention(nn.Module):
    def __init__(self, size, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(size, size), nn.Linear(size, size)
        self.value, self.output = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x):
        batch, length, size = x.shape
        cut = lambda t: t.view(batch, length, self.heads, size // self.heads).transpose(1, 2)
        q, k, v = cut(self.query(x)), cut(self.key(x)), cut(self.value(x))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.output(y.transpose(1, 2).reshape(batch, length, size))


class Layer(nn.Module):
    """A layer of an encoder, with its norms after (BERT) or before (ViT) its parts."""

    def __init__(self, size, heads, inner, norm_first):
        super().__init__()
        self.attention = Attention(size, heads)
        self.norm1, self.norm2 = nn.LayerNorm(size, 1e-12), nn.LayerNorm(size, 1e-12)
        self.inner, self.outer = nn.Linear(size, inner), nn.Linear(inner, size)
        self.norm_first = norm_first

    def feed_forward(self, x):
        return self.outer(F.gelu(self.inner(x)))

    def forward(self, x):
        if self.norm_first:
            x = x + self.attention(self.norm1(x))
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.feed_forward(x))


class Bert(nn.Module):
    def __init__(self, size, layers, tokens):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, size)
        self.positions, self.types = nn.Embedding(512, size), nn.Embedding(2, size)
        self.norm = nn.LayerNorm(size, 1e-12)
        self.layers = nn.Sequential(*[Layer(size, 12, 4 * size, False) for _ in range(layers)])
        self.pooler, self.classifier = nn.Linear(size, size), nn.Linear(size, 2)
        self.register_buffer("places", torch.arange(tokens))

    def forward(self, ids):
        x = self.words(ids) + self.positions(self.places) + self.types(torch.zeros_like(ids))
        x = self.layers(self.norm(x))
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


class Vit(nn.Module):
    def __init__(self, size, side, patch):
        super().__init__()
        tokens = (side // patch) ** 2 + 1
        self.patches = nn.Conv2d(3, size, patch, patch)
        self.first = nn.Parameter(torch.randn(1, 1, size) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, tokens, size) * 0.02)
        layers = [Layer(size, size // 64, 4 * size, True) for _ in range(12)]
        self.layers = nn.Sequential(*layers)
        self.norm, self.classifier = nn.LayerNorm(size, 1e-12), nn.Linear(size, 10)

    def forward(self, x):
        patches = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), patches], 1) + self.positions
        return self.classifier(self.norm(self.layers(x)[:, 0]))


# Network, shape of a batch (of images, or of texts of so many tokens), classes.
WORKLOADS = {
    "resnet18-b32": (ResNet18, (32, 3, 32, 32), 10),
    "resnet18-b128": (ResNet18, (128, 3, 32, 32), 10),
    "wrn-16-4": (lambda: WideResNet(16, 4), (32, 3, 32, 32), 10),
    "small-cnn": (SmallCnn, (64, 3, 32, 32), 10),
    "minilm": (lambda: Bert(384, 6, 64), (16, 64), 2),
    "vit-tiny": (lambda: Vit(192, 32, 4), (32, 3, 32, 32), 10),
    "wrn-28-10": (lambda: WideResNet(28, 10), (128, 3, 32, 32), 10),
    "vit-small": (lambda: Vit(384, 224, 16), (32, 3, 224, 224), 10),
    "bert-base": (lambda: Bert(768, 12, 128), (32, 128), 2),
}


class Place:
    """The device, and what is computed in half precision there."""

    def __init__(self, options):
        name = options.device
        self.device = torch.device(name, options.number if name == "cuda" else None)
        self.half = options.precision == "bf16"
        tf32 = options.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True

    def waking_steps(self):
        """Steps of a round before those that are timed: a card lowers its clocks while other sides are timed."""
        return 0 if self.device.type == "cpu" else 3

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def peak_mib(self):
        """Of the process; the memory of a device is not."""
        return peak_mib() if self.device.type == "cpu" else None


def timed(place, work):
    """Milliseconds that some work takes, and what it returns."""
    place.wait()
    start = time.perf_counter()
    result = work()
    place.wait()
    return (time.perf_counter() - start) * 1e3, result


class Training:
    def __init__(self, workload, place, channels_last):
        make, shape, classes = WORKLOADS[workload]
        torch.manual_seed(0)
        self.place, device = place, place.device
        self.network = make().to(device).train()
        if len(shape) == 2:
            self.x = torch.randint(VOCABULARY, shape).to(device)
        else:
            self.x = torch.randn(shape).to(device)
        if channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.labels = (torch.arange(shape[0]) * 7 % classes).to(device)
        self.sgd = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, fused=True)

    def parameters(self):
        return list(self.network.parameters())

    def loss(self):
        with self.place.autocast():
            return F.cross_entropy(self.network(self.x), self.labels)

    def forward(self):
        self.loss()  # what it computed is freed at once

    def step(self):
        self.sgd.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.sgd.step()
        return loss.item()

    def round(self, repeats):
        forward_ms, step_ms = [], []
        for _ in range(repeats):
            forward_ms.append(timed(self.place, self.forward)[0])
            milliseconds, loss = timed(self.place, self.step)
            step_ms.append(milliseconds)
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss}")
        return {
            "forward_ms": forward_ms,
            "step_ms": step_ms,
            "loss": loss,
            "peak_mib": self.place.peak_mib(),
        }


def shapes(parameters):
    """The matrices and vectors of twelve transformer layers with about so many parameters."""
    h = max(round((math.sqrt(13**2 + 48 * (parameters / 12)) - 13) / 24), 1)
    attention = 4 * [(h, h), (h,)]
    return 12 * (attention + [(4 * h, h), (4 * h,), (h, 4 * h), (h,)] + 4 * [(h,)])


class Update:
    """The fused update of given gradients."""

    def __init__(self, method, size, place):
        self.place = place
        number = int(size[:-1]) * UNITS[size[-1]] if size[-1] in UNITS else int(size)
        self.all = []
        for shape in shapes(number):
            parameter = nn.Parameter(torch.full(shape, 1e-3, device=place.device))
            parameter.grad = torch.full_like(parameter, 1e-3)
            self.all.append(parameter)
        if method == "sgd":
            settings = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
            self.optimizer = torch.optim.SGD(self.all, lr=1e-3, fused=True, **settings)
        else:
            self.optimizer = torch.optim.AdamW(self.all, lr=1e-3, weight_decay=0.01, fused=True)

    def parameters(self):
        return self.all

    def step(self):
        self.optimizer.step()

    def round(self, repeats):
        # Together on a card, as on the other side: a training loop does not wait after each update.
        together = 1 if self.place.device.type == "cpu" else repeats
        several = lambda: [self.step() for _ in range(together)]
        times = [timed(self.place, several)[0] for _ in range(repeats // together)]
        step_ms = [ms / together for ms in times]
        memory = self.place.peak_mib()
        return {"forward_ms": [], "step_ms": step_ms, "loss": 0.0, "peak_mib": memory}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", choices=WORKLOADS)
    parser.add_argument("--method", choices=["sgd", "adamw"])
    parser.add_argument("--size")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "mps"])
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--precision", default="f32", choices=["f32", "tf32", "bf16"])
    options = parser.parse_args()
    if (options.workload is None) == (options.method is None):
        parser.error("either --workload or --method and --size wanted")
    torch.set_num_threads(options.threads)
    start_mib = peak_mib()
    place = Place(options)
    if options.workload:
        timed_side = Training(options.workload, place, options.channels_last)
    else:
        timed_side = Update(options.method, options.size, place)
    for _ in range(WARM_UP):
        timed_side.step()
    say = lambda value: print(json.dumps(value), flush=True)
    parameters = sum(p.numel() for p in timed_side.parameters())
    version = f"torch {torch.__version__}"
    say({"version": version, "parameters": parameters, "start_mib": start_mib})
    for line in sys.stdin:
        if line.strip() != "go":
            sys.exit(f"wanted `go`, got `{line.strip()}`")
        for _ in range(place.waking_steps()):
            timed_side.step()
        say(timed_side.round(options.repeats))


if __name__ == "__main__":
    main()
