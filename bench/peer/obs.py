"""OBS-Diff's reference solver (SparseGPT's `fasterprune`) in PyTorch, and its time on a layer.

Reads the tensors `weight` (rows x columns) and `hessian` (columns x columns, undamped) and prints a
line of JSON: the best time of a solve in seconds and the H-weighted relative error
tr(dW H dW^T) / tr(W H W^T).
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
from options import pattern, share

BLOCK = 128
DAMPING = 0.01


def inverse_factor(H):
    """The upper Cholesky factor of the inverse of H, damped by a share of its mean diagonal."""
    H = H.clone()
    H.diagonal().add_(DAMPING * H.diagonal().mean())
    H = torch.cholesky_inverse(torch.linalg.cholesky(H))
    return torch.linalg.cholesky(H, upper=True)


def fasterprune(W, H, sparsity=0.5, prune_n=0, prune_m=0):
    """Prunes a share of W, or prune_n of every prune_m weights of a row, and updates the rest.

    As the reference does it, but for the bookkeeping of losses that it only prints.
    """
    W = W.clone().float()
    H = H.clone().float()
    dead = H.diagonal() == 0
    H[dead, dead] = 1
    W[:, dead] = 0
    U = inverse_factor(H)
    columns = W.shape[1]
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        block = W[:, start:end].clone()
        U_block = U[start:end, start:end]
        diagonal = U_block.diagonal()
        pruned = torch.zeros_like(block)
        errors = torch.zeros_like(block)
        if prune_n == 0:
            scores = block**2 / diagonal**2
            threshold = scores.flatten().sort()[0][int(scores.numel() * sparsity)]
            mask = scores <= threshold
        else:
            mask = torch.zeros_like(block, dtype=torch.bool)
        for i in range(end - start):
            if prune_n != 0 and i % prune_m == 0:
                scores = block[:, i : i + prune_m] ** 2 / diagonal[i : i + prune_m] ** 2
                lowest = torch.topk(scores, prune_n, dim=1, largest=False)[1]
                mask.scatter_(1, i + lowest, True)
            w = block[:, i]
            q = w.clone()
            q[mask[:, i]] = 0
            error = (w - q) / diagonal[i]
            block[:, i:] -= error.unsqueeze(1).matmul(U_block[i, i:].unsqueeze(0))
            pruned[:, i] = q
            errors[:, i] = error
        W[:, start:end] = pruned
        W[:, end:] -= errors.matmul(U[start:end, end:])
    return W


def relative_error(W, pruned, H):
    """The share of the layer's output that pruning loses, over the inputs that H sums up."""
    W, H = W.double(), H.double()
    lost = W - pruned.double()
    return (((lost @ H) * lost).sum() / ((W @ H) * W).sum()).item()


def add_target(parser):
    """Adds the options that say what to prune: --sparsity or --pattern."""
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--sparsity", type=share, default=0.5, help="share to prune")
    target.add_argument("--pattern", type=pattern, default=(0, 0), help="N:M, prune N of every M")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", required=True, help="safetensors with weight and hessian")
    add_target(parser)
    parser.add_argument("--repeats", type=int, default=3, help="solves; the best is printed")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tensors = load_file(arguments.input)
    W, H = tensors["weight"].float(), tensors["hessian"].float()
    seconds = float("inf")
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        pruned = fasterprune(W, H, arguments.sparsity, *arguments.pattern)
        seconds = min(seconds, time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "error": relative_error(W, pruned, H)}))


if __name__ == "__main__":
    main()
