"""Time of diffusers and PyTorch to generate: text encoding, denoising and decoding, in float32.

The pipeline is loaded once and warmed up with one step. Prints a line of JSON: the best time in
seconds of drawing all prompts, and their number.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
import pipelines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--prompts", required=True, help="file with a prompt a line")
    parser.add_argument("--batch", type=int, default=8, help="prompts a call")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--repeats", type=int, default=1, help="runs; the best is printed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    prompts = pipelines.read_prompts(arguments.prompts)
    pipeline = pipelines.open_pipeline(arguments.model)
    defaults = pipelines.generation(arguments.model) | {
        "steps": arguments.steps,
        "guidance": arguments.guidance,
    }
    pipelines.draw(pipeline, prompts[: arguments.batch], defaults | {"steps": 1})
    seconds = float("inf")
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        for first in range(0, len(prompts), arguments.batch):
            pipelines.draw(pipeline, prompts[first : first + arguments.batch], defaults)
        seconds = min(seconds, time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "images": len(prompts)}))


if __name__ == "__main__":
    main()
