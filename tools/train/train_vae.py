"""Trains the AutoencoderKL (factor 4, 8 latent channels) under a wall-clock budget."""

import copy
import math

import torch
import torch.nn.functional as F

from common import prepare, set_learning_rate, spent, training_parser
from emoji import pictures, rows_of
from networks import vae as new_vae


def across(x):
    """Differences of neighbours in a row."""
    return x[..., 1:] - x[..., :-1]


def down(x):
    """Differences of neighbours in a column."""
    return x[..., 1:, :] - x[..., :-1, :]


def losses(vae, x):
    """Reconstruction (pixels and their differences) and Kullback-Leibler terms."""
    latents = vae.encode(x).latent_dist
    y = vae.decode(latents.sample()).sample
    pixels = F.l1_loss(y, x)
    edges = F.l1_loss(across(y), across(x)) + F.l1_loss(down(y), down(x))
    reconstruction = pixels + 0.5 * edges
    kl = 0.5 * (latents.mean.float() ** 2 + latents.var.float() - 1 - latents.logvar.float()).mean()
    return reconstruction, kl


def batch_of(images, size, step):
    """A random batch in [-1, 1]; every other one mirrored, every fourth with shuffled channels."""
    index = torch.randint(len(images), (size,), device=images.device)
    x = images[index].float() / 127.5 - 1
    if step % 2:
        x = x.flip(-1)
    if step % 4 == 3:
        x = x[:, torch.randperm(3, device=images.device)]
    return x.contiguous(memory_format=torch.channels_last)


def train(vae, images, arguments):
    """Trains for the given minutes; returns the moving average of the weights and the steps."""
    device = arguments.device
    step_losses = torch.compile(losses) if device == "cuda" else losses
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4, fused=device == "cuda"
    )
    average = copy.deepcopy(vae)
    step = 0
    for share in spent(arguments.minutes):
        warm_up = min(1, (step + 1) / 200)
        cosine = 0.5 + 0.5 * math.cos(math.pi * share)
        set_learning_rate(optimizer, 1.5e-3 * warm_up * cosine)
        x = batch_of(images, arguments.batch, step)
        with torch.autocast(device, torch.bfloat16):
            reconstruction, kl = step_losses(vae, x)
        (reconstruction + 2e-4 * kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), vae.parameters()):
                mean.lerp_(weight, 0.002 if step > 500 else 0.1)
        if step % 500 == 0:
            print(f"{step} rec {reconstruction.item():.4f} kl {kl.item():.3f}", flush=True)
    return average.eval().float(), step


@torch.no_grad()
def evaluate(vae, images):
    """Latents and mean squared error (pictures in [0, 1]) of each picture."""
    errors, latents = [], []
    for chunk in images.split(125):
        x = chunk.float() / 127.5 - 1
        z = vae.encode(x).latent_dist.mean
        y = vae.decode(z).sample.clamp(-1, 1)
        latents.append(z)
        errors.append(((y - x) / 2).pow(2).mean(dim=(1, 2, 3)))
    return torch.cat(latents), torch.cat(errors)


def main():
    arguments = training_parser(__doc__, minutes=4, batch=256).parse_args()
    prepare()
    train_images = pictures(rows_of("train")).to(arguments.device)
    held_out_images = pictures(rows_of("heldout")).to(arguments.device)
    vae = new_vae().to(arguments.device).to(memory_format=torch.channels_last)
    vae, steps = train(vae, train_images, arguments)
    latents, errors = evaluate(vae, held_out_images)
    scaling = round(1 / latents.std().item(), 5)
    vae.register_to_config(scaling_factor=scaling, shift_factor=0.0)
    psnr = (-10 * errors.log10()).mean().item()
    print(f"{steps} steps, held-out PSNR {psnr:.2f} dB, scaling {scaling}", flush=True)
    vae.to(memory_format=torch.contiguous_format).save_pretrained(f"{arguments.out}/vae")


if __name__ == "__main__":
    main()
