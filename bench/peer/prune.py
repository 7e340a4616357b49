"""OBS-Diff in one package with diffusers and PyTorch, as its reference does it.

Hooks on every attention and feed-forward linear of the transformer blocks sum up one H a layer
over the whole denoising, weighted by step (logarithmic decrease from 1.2 to 0.8); then every layer
is solved. All batches start from the same noise. Prints a line of JSON with the seconds of both.
"""

import argparse
import json
import math
import shutil
import sys
import time
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
import pipelines
from obs import add_target, fasterprune


def log_decrease(steps, least=0.8, most=1.2):
    """The weight of each step, the noisiest first: OBS-Diff, equation 4."""
    if steps == 1:
        return [most]
    logs = [math.log(steps - index) / math.log(steps) for index in range(steps)]
    return [least + (most - least) * log for log in logs]


class Hessian:
    """H = 2 / sum(w) * sum(w X^T X) over batches, w being the step's weight times the batch."""

    def __init__(self, columns):
        self.sum = torch.zeros(columns, columns)
        self.weight = 0.0

    def add(self, x, step_weight):
        """Adds the input of a layer: batch x ... x columns."""
        weight = step_weight * len(x)
        x = x.reshape(-1, x.shape[-1]).float()
        self.sum *= self.weight / (self.weight + weight)
        self.weight += weight
        x = math.sqrt(2 * weight / self.weight) * x
        self.sum += x.T @ x


class Calibration:
    """Hooks that fill a Hessian a layer while the pipeline runs.

    The step is the number of the denoiser's calls so far: right for samplers with one call a step.
    """

    def __init__(self, pipeline, layers, weights):
        self.hessians = {name: Hessian(layer.in_features) for name, layer in layers.items()}
        self.weights = weights
        self.step = -1
        denoiser = getattr(pipeline, pipelines.denoiser_name(pipeline))
        self.handles = [denoiser.register_forward_pre_hook(self.count)]
        for name, layer in layers.items():
            self.handles.append(layer.register_forward_pre_hook(self.watcher(name)))

    def start_batch(self):
        """Begins with the first step again."""
        self.step = -1

    def count(self, module, inputs):
        """Called before the denoiser."""
        self.step += 1

    def watcher(self, name):
        """The hook of a layer."""

        def watch(module, inputs):
            self.hessians[name].add(inputs[0], self.weights[self.step])

        return watch

    def stop(self):
        """Takes the hooks off."""
        for handle in self.handles:
            handle.remove()


def calibrate(pipeline, layers, prompts, defaults, batch, seed):
    """The H of every layer over all prompts."""
    calibration = Calibration(pipeline, layers, log_decrease(defaults["steps"]))
    for first in range(0, len(prompts), batch):
        calibration.start_batch()
        batch_of_prompts = prompts[first : first + batch]
        pipelines.draw(pipeline, batch_of_prompts, defaults, seed, output_type="latent")
    calibration.stop()
    return {name: hessian.sum for name, hessian in calibration.hessians.items()}


def save(pipeline, model, folder):
    """Writes the pipeline in half precision with the model's generation defaults and prompts."""
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    for name in ("model_index.json", "secateur.json"):
        shutil.copy(Path(model) / name, folder)
    shutil.copytree(Path(model) / "prompts", Path(folder) / "prompts", dirs_exist_ok=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--prompts", help="prompt file (default: the model's calibration prompts)")
    parser.add_argument("--count", type=int, default=100, help="prompts to calibrate with")
    parser.add_argument("--batch", type=int, default=4, help="prompts a call")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    add_target(parser)
    parser.add_argument("--seed", type=int, default=0, help="fixes the noise")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--out", help="folder to save the pruned pipeline in")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.prompts:
        prompts = pipelines.read_prompts(arguments.prompts)
    else:
        prompts = pipelines.prompts(arguments.model, "calibration")
    prompts = prompts[: arguments.count]
    given = {"steps": arguments.steps, "guidance": arguments.guidance}
    defaults = pipelines.generation(arguments.model)
    defaults |= {name: value for name, value in given.items() if value is not None}
    pipeline = pipelines.open_pipeline(arguments.model)
    layers = pipelines.block_linears(pipeline)

    start = time.perf_counter()
    hessians = calibrate(pipeline, layers, prompts, defaults, arguments.batch, arguments.seed)
    calibrated = time.perf_counter()
    with torch.no_grad():
        for name, layer in layers.items():
            pruned = fasterprune(
                layer.weight, hessians[name], arguments.sparsity, *arguments.pattern
            )
            layer.weight.copy_(pruned)
    solved = time.perf_counter()

    if arguments.out:
        save(pipeline, arguments.model, arguments.out)
    report = {
        "calibrate_seconds": calibrated - start,
        "solve_seconds": solved - calibrated,
        "layers": len(layers),
        "prompts": len(prompts),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
