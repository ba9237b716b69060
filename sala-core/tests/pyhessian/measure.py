"""Measures a small network with PyHessian: makes network.safetensors and expected.json beside this file.

    pip install torch==2.13.0 numpy safetensors pyhessian==0.1
    python sala-core/tests/pyhessian/measure.py

PyHessian 0.1 calls torch.eig, which torch no longer has; numpy's eigh of the same symmetric matrix stands in
for it. Everything is float64.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)


def eig(matrix, eigenvectors):
    values, vectors = np.linalg.eigh(matrix.numpy())
    return torch.tensor(np.stack([values, 0 * values], 1)), torch.tensor(vectors)


torch.eig = eig

from pyhessian import hessian  # noqa: E402  (after the stand-in)

HERE = Path(__file__).parent


class Net(torch.nn.Module):
    """8 -> 16 -> 16 -> 4 with tanh."""

    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(8, 16)
        self.fc2 = torch.nn.Linear(16, 16)
        self.fc3 = torch.nn.Linear(16, 4)

    def forward(self, x):
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


def main():
    torch.manual_seed(7)
    net, loss = Net(), torch.nn.CrossEntropyLoss()
    x = torch.randn(64, 8)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] * x[:, 2] > 0).long()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()

    measured = hessian(net, loss, data=(x, y), cuda=False)
    eigenvalues, _ = measured.eigenvalues(maxIter=1000, tol=1e-10, top_n=3)
    trace = measured.trace(maxIter=400, tol=0.0)
    values, weights = measured.density(iter=60, n_v=10)

    # The Hessian itself, for what PyHessian estimates.
    params = [p for p in net.parameters()]
    grads = torch.autograd.grad(loss(net(x), y), params, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in grads])
    rows = []
    for g in flat:
        parts = torch.autograd.grad(g, params, retain_graph=True)
        rows.append(torch.cat([p.reshape(-1) for p in parts]))
    spectrum = torch.linalg.eigvalsh(torch.stack(rows))

    tensors = {name: p.detach().clone() for name, p in net.named_parameters()}
    save_file(tensors | {"x": x, "y": y}, HERE / "network.safetensors")
    expected = {
        "torch": torch.__version__.split("+")[0],
        "loss": loss(net(x), y).item(),
        "eigenvalues": [float(v) for v in eigenvalues],
        "trace": [float(v) for v in trace],
        "density_values": [[float(v) for v in run] for run in values],
        "density_weights": [[float(w) for w in run] for run in weights],
        "spectrum": [float(v) for v in spectrum],
    }
    (HERE / "expected.json").write_text(json.dumps(expected) + "\n")
    print({name: expected[name] for name in ("torch", "loss", "eigenvalues")})
    print("trace", np.mean(trace), "true", spectrum.sum().item())


if __name__ == "__main__":
    main()
