"""Times the single operations of `secateur-nn/examples/operations.rs` in PyTorch, by the same names.

    operations.py [PART OF A NAME]

Prints a line of CSV for each: its name, milliseconds, eager or compiled, whichever is less.
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F

OPTIONS = {"device": "cuda", "dtype": torch.bfloat16}


def random(*shape):
    return torch.randn(*shape, **OPTIONS)


def picture(*shape):
    return random(*shape).to(memory_format=torch.channels_last)


def linear(rows, inputs, outputs, gelu=False):
    x, weight, bias = random(rows, inputs), random(outputs, inputs), random(outputs)
    if gelu:
        return lambda: F.gelu(F.linear(x, weight, bias), approximate="tanh")
    return lambda: F.linear(x, weight, bias)


def attention(samples, heads, queries, keys, width, gradients=False):
    def tokens(count):
        return random(samples, count, heads, width)

    q, k, v = (tokens(count).requires_grad_(gradients) for count in (queries, keys, keys))

    def forward():
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))

    if not gradients:
        return forward
    of_result = random(samples, heads, queries, width)
    return lambda: torch.autograd.grad(forward(), (q, k, v), of_result)


def convolution(samples, channels, side):
    x, bias = picture(samples, channels, side, side), random(channels)
    weight = picture(channels, channels, 3, 3)
    return lambda: F.conv2d(x, weight, bias, padding=1)


def row_sums(rows, taken, width):
    """As a hook of the reference: all in f32, without TF32."""
    x, places = random(rows, width), torch.arange(taken, device="cuda") * rows // taken
    gram = torch.zeros(width, width, device="cuda")

    def add():
        rows = x[places].float()
        gram.addmm_(rows.T, rows)

    return add


def rope(x, cos, sin):
    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], -1).flatten(-2)
    return (x.float() * cos + turned * sin).to(x.dtype)


def passes():
    x, other = random(2, 4429, 2432), random(2, 4429, 2432)
    weight, bias, scale, shift = random(2432), random(2432), random(2, 1, 2432), random(2, 1, 2432)
    of_heads, of_head = random(8858, 38, 64), random(64)
    wide, double, scores = random(8858, 9728), random(8192, 5120), random(16384, 512)
    heads = random(1, 4608, 24, 128)
    cos, sin = (torch.randn(4608, 1, 128, device="cuda") for _ in range(2))
    image, of_image = picture(2, 320, 128, 128), (random(320), random(320))
    small = picture(2, 640, 64, 64)

    def modulated():
        return F.layer_norm(x, (2432,), eps=1e-6) * (1 + scale) + shift

    def geglu():
        y, gate = double.chunk(2, -1)
        return y * F.gelu(gate)

    return {
        "layer norm 8858x2432": lambda: F.layer_norm(x, (2432,), weight, bias),
        "layer norm modulated 8858x2432": modulated,
        "gated add 8858x2432": lambda: x + scale * other,
        "rms norm 8858x38x64": lambda: F.rms_norm(of_heads, (64,), of_head, 1e-6),
        "gelu tanh 8858x9728": lambda: F.gelu(wide, approximate="tanh"),
        "geglu 8192x2560": geglu,
        "rope 4608x24x128": lambda: rope(heads, cos, sin),
        "softmax 16384x512": lambda: scores.softmax(-1),
        "group norm silu 2x320x128": lambda: F.silu(F.group_norm(image, 32, *of_image)),
        "upsample 2x640x64": lambda: F.interpolate(small, scale_factor=2),
    }


def cases():
    every = {}
    for rows, inputs, outputs in [
        (8858, 2432, 2432),
        (8858, 2432, 9728),
        (8858, 9728, 2432),
        (4608, 3072, 12288),
        (4608, 15360, 3072),
    ]:
        every[f"linear {rows}x{inputs}x{outputs}"] = linear(rows, inputs, outputs)
    every["linear gelu 8858x2432x9728"] = linear(8858, 2432, 9728, gelu=True)
    shapes = [
        (2, 38, 4429, 4429, 64),
        (2, 24, 4429, 4429, 64),
        (1, 24, 4608, 4608, 128),
        (2, 10, 4096, 4096, 64),
        (2, 8, 4096, 4096, 40),
        (2, 8, 4096, 77, 40),
        (2, 20, 1024, 1024, 64),
    ]
    for shape in shapes:
        every["attention " + "x".join(map(str, shape))] = attention(*shape)
    for shape in shapes[1:3]:
        name = "attention with gradients " + "x".join(map(str, shape))
        every[name] = attention(*shape, gradients=True)
    for shape in [(2, 320, 128), (2, 640, 64), (2, 1280, 32), (1, 512, 512), (2, 320, 64)]:
        every["convolution " + "x".join(map(str, shape))] = convolution(*shape)
    for rows, taken, width in [
        (16384, 16384, 1536),
        (16384, 16384, 6144),
        (16384, 4096, 1536),
        (16384, 4096, 6144),
        (1232, 320, 1536),
        (1232, 320, 6144),
    ]:
        every[f"row sums {taken} of {rows}x{width}"] = row_sums(rows, taken, width)
    return every | passes()


def timed(call):
    def seconds(calls):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls

    seconds(3)
    calls = int(min(max(0.02 / seconds(5), 5), 200))
    return 1e3 * statistics.median(seconds(calls) for _ in range(5))


def main(part=""):
    print("operation,milliseconds")
    fused = set(passes())
    for name, call in cases().items():
        if part in name:
            least = timed(call)
            if name in fused or name.startswith("linear gelu"):
                with torch.inference_mode():
                    least = min(least, timed(torch.compile(call)))
            print(f"{name},{least:.4f}", flush=True)


main(*sys.argv[1:])
