"""Times one call of a denoiser of random weights in diffusers, eager and compiled.

    peer.py CONFIGURATION PIXELS SAMPLES [--eager]

CONFIGURATION: a folder of `tools/full_size`. Prints milliseconds: the median of seven calls.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import diffusers
import torch


def build(folder):
    component = next(folder / name for name in ("unet", "transformer") if (folder / name).is_dir())
    config = json.loads((component / "config.json").read_text())
    with torch.device("cuda"):
        model = getattr(diffusers, config["_class_name"]).from_config(config)
    return model.to(torch.bfloat16).eval().requires_grad_(False)


def inputs(model, pixels, samples):
    config, side = model.config, pixels // 8
    options = {"device": "cuda", "dtype": torch.bfloat16}
    name = type(model).__name__

    def random(*shape):
        return torch.randn(*shape, **options)

    if name == "FluxTransformer2DModel":
        image = (side // 2) ** 2
        return {
            "hidden_states": random(samples, image, config.in_channels),
            "encoder_hidden_states": random(samples, 512, config.joint_attention_dim),
            "pooled_projections": random(samples, config.pooled_projection_dim),
            "timestep": torch.full((samples,), 0.5, **options),
            "guidance": torch.full((samples,), 3.5, device="cuda"),
            "img_ids": torch.zeros(image, 3, **options),
            "txt_ids": torch.zeros(512, 3, **options),
        }
    times = torch.full((samples,), 500.0, device="cuda")
    if name == "SD3Transformer2DModel":
        return {
            "hidden_states": random(samples, config.in_channels, side, side),
            "encoder_hidden_states": random(samples, 333, config.joint_attention_dim),
            "pooled_projections": random(samples, config.pooled_projection_dim),
            "timestep": times,
        }
    given = {
        "sample": random(samples, config.in_channels, side, side),
        "timestep": times,
        "encoder_hidden_states": random(samples, 77, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        given["added_cond_kwargs"] = {
            "text_embeds": random(samples, 1280),
            "time_ids": torch.full((samples, 6), 1024.0, **options),
        }
    return given


@torch.inference_mode()
def timed(call):
    for _ in range(3):
        call()
    seconds = []
    for _ in range(7):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def main(configuration, pixels, samples, *options):
    model = build(Path(configuration))
    given = inputs(model, int(pixels), int(samples))
    torch.cuda.reset_peak_memory_stats()
    eager = timed(lambda: model(**given, return_dict=False))
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"eager {eager:.2f} ms, peak {peak:.2f} GiB", flush=True)
    if "--eager" in options:
        return
    if "UNet" in type(model).__name__:
        model = model.to(memory_format=torch.channels_last)
    compiled = torch.compile(model)
    print(f"compiled {timed(lambda: compiled(**given, return_dict=False)):.2f} ms", flush=True)


main(*sys.argv[1:])
