"""Times OBS-Diff's own way on a model of random weights: hooks, Hessians in f32, its solver.

    reference.py CONFIGURATION PIXELS SAMPLES [CALLS]

CONFIGURATION: a folder of `tools/full_size`. A transcription of the reference: a hook at every linear
layer of a block adds x^T x in f32 to the Hessian of that layer, and the solver removes half of the
weights column by column in blocks of 128. Prints the milliseconds of a call with hooks and without,
the solver's seconds for each shape of a layer, and what 2,500 calls and all layers take.
"""

import collections
import sys
import time
from pathlib import Path

import torch
from peer import build, inputs, timed


class Hessian:
    def __init__(self, layer):
        width = layer.in_features
        self.sum = torch.zeros(width, width, device="cuda")
        self.samples = 0

    def add(self, _, arguments, __):
        x = arguments[0].reshape(-1, arguments[0].shape[-1])
        self.sum *= self.samples / (self.samples + 1)
        self.samples += 1
        x = (2 / self.samples) ** 0.5 * x.t().float()
        self.sum += x.matmul(x.t())


def solve(weight, hessian, share=0.5, block=128):
    w, h = weight.float().clone(), hessian.clone()
    columns = w.shape[1]
    dead = torch.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    places = torch.arange(columns, device="cuda")
    h[places, places] += 0.01 * torch.mean(torch.diag(h))
    h = torch.linalg.cholesky(h)
    h = torch.linalg.cholesky(torch.cholesky_inverse(h), upper=True)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        part, errors = w[:, start:end].clone(), torch.zeros_like(w[:, start:end])
        done, factor = torch.zeros_like(part), h[start:end, start:end]
        scores = part**2 / torch.diag(factor).reshape(1, -1) ** 2
        mask = scores <= torch.sort(scores.flatten())[0][int(scores.numel() * share)]
        for i in range(end - start):
            column, d = part[:, i], factor[i, i]
            kept = column.clone()
            kept[mask[:, i]] = 0
            done[:, i] = kept
            error = (column - kept) / d
            part[:, i:] -= error.unsqueeze(1).matmul(factor[i, i:].unsqueeze(0))
            errors[:, i] = error
        w[:, start:end] = done
        w[:, end:] -= errors.matmul(h[start:end, end:])
    return w


@torch.inference_mode()
def main():
    folder, pixels, samples = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    calls = int(sys.argv[4]) if len(sys.argv) > 4 else 2500
    model = build(folder)
    given = inputs(model, pixels, samples)
    alone = timed(lambda: model(**given))
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and "blocks" in name and "norm" not in name
    ]
    hessians = {name: Hessian(layer) for name, layer in layers}
    hooks = [layer.register_forward_hook(hessians[name].add) for name, layer in layers]
    watched = timed(lambda: model(**given))
    for hook in hooks:
        hook.remove()
    print(f"a call {alone:.1f} ms, with hooks at {len(layers)} layers {watched:.1f} ms")
    shapes = collections.defaultdict(list)
    for name, layer in layers:
        shapes[tuple(layer.weight.shape)].append((name, layer))
    total = 0.0
    for shape, alike in shapes.items():
        name, layer = alike[0]
        for _ in range(2):
            torch.cuda.synchronize()
            start = time.perf_counter()
            solve(layer.weight, hessians[name].sum)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        total += seconds * len(alike)
        print(f"{shape[0]} x {shape[1]}: {1e3 * seconds:.0f} ms, {len(alike)} layers")
    print(f"{calls} calls {watched * calls / 1e3:.0f} s, all layers {total:.1f} s")
    print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
