"""Times one call of a model of random weights in diffusers, eager and compiled.

    peer.py CONFIGURATION PIXELS SAMPLES [denoiser|vae|text_encoder_3] [--eager]

CONFIGURATION: a folder of `tools/full_size`. Of the VAE the decoder is timed, of the T5 512 tokens.
Prints milliseconds, the median of seven calls, and the peak of the tensors' memory.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import diffusers
import torch
import transformers


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


def denoiser(folder, pixels, samples):
    model = build(folder)
    given = inputs(model, pixels, samples)
    return model, lambda model: model(**given, return_dict=False)


class Decoder(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, latents):
        return self.vae.decode(latents, return_dict=False)


def vae(folder, pixels, samples):
    config = json.loads((folder / "vae" / "config.json").read_text())
    with torch.device("cuda"):
        model = diffusers.AutoencoderKL.from_config(config)
    model = model.to(torch.bfloat16).eval().requires_grad_(False)
    shape = (samples, config["latent_channels"], pixels // 8, pixels // 8)
    latents = torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
    return Decoder(model), lambda model: model(latents)


def text_encoder_3(folder, _, samples):
    config = transformers.T5Config.from_json_file(folder / "text_encoder_3" / "config.json")
    with torch.device("cuda"):
        model = transformers.T5EncoderModel(config)
    model = model.to(torch.bfloat16).eval().requires_grad_(False)
    ids = torch.arange(512 * samples, device="cuda").reshape(samples, 512)
    return model, lambda model: model(ids, return_dict=False)


def main(configuration, pixels, samples, *options):
    names = [name for name in options if not name.startswith("--")] or ["denoiser"]
    component = {"denoiser": denoiser, "vae": vae, "text_encoder_3": text_encoder_3}[names[0]]
    model, call = component(Path(configuration), int(pixels), int(samples))
    torch.cuda.reset_peak_memory_stats()
    eager = timed(lambda: call(model))
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"eager {eager:.2f} ms, peak {peak:.2f} GiB", flush=True)
    if "--eager" in options:
        return
    if names[0] == "vae" or "UNet" in type(model).__name__:
        model = model.to(memory_format=torch.channels_last)
    compiled = torch.compile(model)
    print(f"compiled {timed(lambda: call(compiled)):.2f} ms", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
