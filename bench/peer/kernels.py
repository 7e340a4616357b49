"""Times PyTorch's kernels in float32: the cases of secateur's `kernels` example, with the same names.

Prints a line of JSON for each case, with the best time in seconds.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F


def linear(rows, inputs, outputs):
    """x W^T + b."""
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    return f"linear {rows}x{inputs}x{outputs}", lambda: F.linear(x, weight, bias)


def attention(batch, heads, tokens, head_dim):
    """Scaled dot-product attention, from the projections' layout."""
    shape = (batch, tokens, heads, head_dim)
    q, k, v = (torch.randn(shape).transpose(1, 2) for _ in range(3))
    name = f"attention b{batch} h{heads} n{tokens} d{head_dim}"
    return name, lambda: F.scaled_dot_product_attention(q, k, v)


def convolution(kernel, stride):
    """A convolution of SD's first level."""
    x, bias = torch.randn(2, 320, 64, 64), torch.randn(320)
    weight = torch.randn(320, 320, kernel, kernel)
    name = f"conv {kernel}x{kernel} stride {stride} 2x320x64x64"
    return name, lambda: F.conv2d(x, weight, bias, stride=stride, padding=kernel // 2)


def gram(rows, columns):
    """X^T X, summed up."""
    x, total = torch.randn(rows, columns), torch.zeros(columns, columns)
    return f"gram {rows}x{columns}", lambda: total.add_(x.T @ x)


def cases():
    """The cases in the order of the example."""
    image, wide = torch.randn(2, 320, 64, 64), torch.randn(2, 4096, 1280)
    rows, scores = torch.randn(8192, 320), torch.randn(16384, 512)
    weight, bias = torch.randn(320), torch.randn(320)
    return [
        linear(2048, 2048, 2048),
        linear(1024, 256, 256),
        linear(1024, 256, 1024),
        linear(1024, 1024, 256),
        linear(128, 256, 1024),
        linear(2, 256, 1536),
        attention(2, 8, 4096, 40),
        attention(2, 16, 256, 72),
        attention(16, 8, 128, 32),
        convolution(3, 1),
        convolution(3, 2),
        convolution(1, 1),
        ("group norm 2x320x64x64", lambda: F.group_norm(image, 32, weight, bias)),
        ("layer norm 8192x320", lambda: F.layer_norm(rows, (320,), weight, bias)),
        ("gelu 2x4096x1280", lambda: F.gelu(wide)),
        ("gelu tanh 2x4096x1280", lambda: F.gelu(wide, approximate="tanh")),
        ("silu 2x320x64x64", lambda: F.silu(image)),
        ("softmax 16384x512", lambda: F.softmax(scores, -1)),
        gram(8192, 1536),
        gram(1024, 256),
        gram(1024, 1024),
    ]


def best_time(run, seconds):
    """The best time of calls during some seconds, at least three."""
    best, begun, calls = float("inf"), time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        calls += 1
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of the names of the cases to run")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each case")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with torch.no_grad():
        for name, run in cases():
            if arguments.only in name:
                seconds = best_time(run, arguments.seconds)
                print(json.dumps({"case": name, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
