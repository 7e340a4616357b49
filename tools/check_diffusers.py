"""Checks with stock diffusers a model that secateur wrote as masked or N:M weights.

Prints the share of exact zeros of every attention and feed-forward layer, compares the rest of the
model with the dense one, and draws held-out prompts. Exit status 0 only if everything holds.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

import pipelines
from options import pattern


class Report:
    """Collects what does not hold."""

    def __init__(self):
        self.failures = 0

    def check(self, holds, what):
        """Notes a failure unless `holds`."""
        if not holds:
            self.failures += 1
            print(f"FAILED: {what}")


def check_zeros(layers, nm, report):
    """Prints the zeros of each layer; with a pattern, every group of M must hold N of them."""
    zeros = weights = 0
    for name, layer in layers.items():
        zero = layer.weight.detach() == 0
        zeros += zero.sum().item()
        weights += zero.numel()
        print(f"{zero.float().mean().item():8.2%}  {name}  {tuple(zero.shape)}")
        report.check(torch.isfinite(layer.weight).all().item(), f"{name}: weights are not finite")
        if nm:
            n, m = nm
            if zero.shape[1] % m:
                report.check(False, f"{name}: {zero.shape[1]} columns are not whole groups of {m}")
                continue
            short = (zero.unflatten(1, (-1, m)).sum(-1) < n).sum().item()
            report.check(short == 0, f"{name}: {short} groups of {m} hold fewer than {n} zeros")
    report.check(layers, "no attention or feed-forward layers found")
    print(f"{zeros / max(weights, 1):8.2%}  in all: {zeros} of {weights}")


class Tensors:
    """The tensors of all safetensors files of a model, by component and name."""

    def __init__(self, folder):
        self.files = {}
        for path in sorted(Path(folder).glob("*/*.safetensors")):
            file = safe_open(path, "pt")
            for name in file.keys():
                key = f"{path.parent.name}/{name}"
                if key in self.files:
                    raise SystemExit(f"{folder}: two files hold {key}: keep one variant")
                self.files[key] = file

    def __getitem__(self, key):
        return self.files[key].get_tensor(key.split("/", 1)[1])


def check_dense(model, dense, changed, report):
    """All tensors are the dense model's but for the weights named in `changed`, whose shape is."""
    ours, theirs = Tensors(model), Tensors(dense)
    for key in sorted(ours.files.keys() ^ theirs.files.keys()):
        report.check(False, f"{key} is in {'the model' if key in ours.files else 'DENSE'} only")
    same = pruned = 0
    for key in sorted(ours.files.keys() & theirs.files.keys()):
        mine, other = ours[key], theirs[key]
        if (mine.shape, mine.dtype) != (other.shape, other.dtype):
            was = f"DENSE has {tuple(other.shape)} {other.dtype}"
            report.check(False, f"{key}: {tuple(mine.shape)} {mine.dtype}, {was}")
        elif key in changed:
            pruned += not same_bits(mine, other)
        else:
            report.check(same_bits(mine, other), f"{key} differs from DENSE")
            same += 1
    print(f"{pruned} of {len(changed)} layers differ from DENSE; {same} other tensors compared")


def same_bits(a, b):
    """Whether two tensors of one shape and type hold the same bytes."""
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def check_images(pipeline, model, count, out, report):
    """Draws the first held-out prompts: every picture is finite and not of one colour."""
    prompts = pipelines.prompts(model, "held_out")[:count]
    images = pipelines.draw(pipeline, prompts, pipelines.generation(model), output_type="np")
    report.check(len(images) == len(prompts), f"{len(images)} pictures of {len(prompts)} prompts")
    for prompt, image in zip(prompts, images):
        report.check(np.isfinite(image).all(), f"{prompt!r}: the picture is not finite")
        report.check(image.std() > 0, f"{prompt!r}: the picture is of one colour")
    print(f"{len(images)} pictures drawn, {images.shape[1]}x{images.shape[2]}")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(pipeline.numpy_to_pil(np.nan_to_num(images))):
            picture.save(out / f"{index:03}.png")
        listing = "".join(f"{index:03}.png  {prompt}\n" for index, prompt in enumerate(prompts))
        (out / "prompts.txt").write_text(listing, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder that secateur wrote")
    parser.add_argument("--dense", help="the model it was made from")
    parser.add_argument("--pattern", type=pattern, help="N:M: N zeros in every M weights of a row")
    parser.add_argument("--images", type=int, default=4, help="held-out prompts to draw")
    parser.add_argument("--out", type=Path, help="folder for the pictures, as PNG")
    arguments = parser.parse_args()
    report = Report()
    pipeline = pipelines.open_pipeline(arguments.model)
    layers = pipelines.block_linears(pipeline)
    check_zeros(layers, arguments.pattern, report)
    if arguments.dense:
        component = pipelines.denoiser_name(pipeline)
        changed = {f"{component}/{name}.weight" for name in layers}
        check_dense(arguments.model, arguments.dense, changed, report)
    if arguments.images:
        check_images(pipeline, arguments.model, arguments.images, arguments.out, report)
    print(f"{report.failures} checks failed" if report.failures else "all checks hold")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
