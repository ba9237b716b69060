"""PyTorch's side of `cargo bench -p sala-core --bench against_torch`: times optimizer steps on request.

One JSON object a line on standard input:

    {"shapes": [[10, 512], [10]], "rule": "adamw", "form": "fused", "cycle": 1, "seconds": 0.5, "threads": 2}

and one a line in answer, with the milliseconds of a step in each of the cycles that were timed, or what
went wrong:

    {"ms": [1.25, 1.24, 1.31]}

Before the first request it says which PyTorch it is: {"torch": "2.13.0"}. Gradients are given and never
change, as on the other side; parameters are kept while the shapes stay the same, and an optimizer with
its state lives for one request. The configurations are those of `benches/networks/mod.rs`.
"""

import gc
import json
import sys
import time

import torch

WARM_UP_CYCLES = 2
LEAST_CYCLES = 3


def network(shapes):
    """Parameters of these shapes with small values, and gradients."""
    parameters = []
    for shape in shapes:
        values = torch.arange(torch.Size(shape).numel()).remainder_(1009).mul(1e-5).sub_(5e-3)
        parameter = torch.nn.Parameter(values.reshape(shape))
        parameter.grad = values.reshape(shape).clone()
        parameters.append(parameter)
    return parameters


def sgd(parameters, **form):
    return torch.optim.SGD(
        parameters, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4, **form
    )


def lookahead(parameters, form):
    """Five steps of SGD, one step back, as PyTorch's own multi-tensor operations allow."""
    base = sgd(parameters, **form)
    weights = [p.detach() for p in parameters]
    slow = [w.clone() for w in weights]
    taken = 0

    def step():
        nonlocal taken
        base.step()
        taken += 1
        if taken % 5 == 0:
            torch._foreach_lerp_(slow, weights, 0.8)
            torch._foreach_copy_(weights, slow)

    return step


def sam_alone(parameters):
    """Norm, save, climb, norm, restore: SAM's own part of a step."""
    weights = [p.detach() for p in parameters]
    gradients = [p.grad for p in parameters]
    saved = [torch.empty_like(w) for w in weights]

    def norm():
        return torch.stack(torch._foreach_norm(gradients)).norm().item()

    def step():
        scale = 0.05 / (norm() + 1e-12)
        torch._foreach_copy_(saved, weights)
        torch._foreach_add_(weights, gradients, alpha=scale)
        norm()
        torch._foreach_copy_(weights, saved)

    return step


def make(rule, form, parameters):
    """A function that takes one step."""
    keyword = {form: True}
    if rule == "sgd-nesterov":
        return sgd(parameters, **keyword).step
    if rule == "adamw":
        return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, **keyword).step
    if rule == "lookahead-k5-sgd":
        return lookahead(parameters, keyword)
    if rule == "sam-alone" and form == "foreach":
        return sam_alone(parameters)
    raise ValueError(f"no {rule} in the form {form}")


@torch.no_grad()
def measure(step, cycle, seconds):
    """Milliseconds of a step, a number for each cycle, for so long and no fewer than three times."""
    for _ in range(WARM_UP_CYCLES * cycle):
        step()
    times = []
    begin = time.perf_counter()
    while len(times) < LEAST_CYCLES or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        for _ in range(cycle):
            step()
        times.append((time.perf_counter() - start) * 1e3 / cycle)
    return times


def main():
    answer = lambda value: print(json.dumps(value), flush=True)
    answer({"torch": torch.__version__})
    shapes, parameters = None, []
    for line in sys.stdin:
        try:
            request = json.loads(line)
            torch.set_num_threads(request["threads"])
            if request["shapes"] != shapes:
                shapes, parameters = request["shapes"], []
                parameters = network(shapes)
            step = make(request["rule"], request["form"], parameters)
            answer({"ms": measure(step, request["cycle"], request["seconds"])})
        except Exception as error:  # the other side decides what a failure means
            answer({"error": f"{type(error).__name__}: {error}"})
        step = None
        gc.collect()


if __name__ == "__main__":
    main()
