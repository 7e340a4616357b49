"""Latents of the whole set under the trained VAE: each picture and augmented views of it."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from common import parser
from emoji import pictures, rows_of

# A mirror image keeps its meaning in these categories only.
MIRRORED = ("people", "smileys", "animals", "food", "activities")


def view(x, mirrored):
    """Each picture shrunk a little, shifted, and mirrored half of the time where it may be."""
    count, device = len(x), x.device
    scale = 1.0 + 0.16 * torch.rand(count, device=device)
    shift_x, shift_y = (torch.rand(2, count, device=device) - 0.5) * 0.14
    sign = torch.where(mirrored & (torch.rand(count, device=device) < 0.5), -1.0, 1.0)
    zero = torch.zeros(count, device=device)
    first_row = torch.stack([scale * sign, zero, shift_x], -1)
    second_row = torch.stack([zero, scale, shift_y], -1)
    transform = torch.stack([first_row, second_row], 1)
    grid = F.affine_grid(transform, x.shape, align_corners=False)
    # What comes into view is white: samples outside the picture are 0, and 0 stands for 1 here.
    return 1 - F.grid_sample(1 - x, grid, align_corners=False)


def main():
    options = parser(__doc__)
    options.add_argument("--views", type=int, default=12, help="views a picture")
    arguments = options.parse_args()
    device = arguments.device
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(f"{arguments.out}/vae").to(device).eval()
    rows = rows_of()
    images = pictures(rows).to(device)
    mirrored = torch.tensor([row["category"] in MIRRORED for row in rows], device=device)
    views = []
    with torch.no_grad():
        for index in range(arguments.views):
            moments = []
            for start in range(0, len(images), 512):
                x = images[start : start + 512].float() / 127.5 - 1
                if index:
                    x = view(x, mirrored[start : start + 512])
                with torch.autocast(device, torch.bfloat16):
                    moments.append(vae.encode(x).latent_dist.parameters.half())
            views.append(torch.cat(moments))
    latents = torch.stack(views)
    torch.save(latents, f"{arguments.out}/latents.pt")
    print("latents", tuple(latents.shape), flush=True)


if __name__ == "__main__":
    main()
