"""Trains the small CLIPModel on (picture, caption) pairs: the text-image score of this domain."""

import math

import torch
import torch.nn.functional as F
from transformers import CLIPImageProcessor

from common import prepare, set_learning_rate, spent, training_parser
from emoji import caption, pictures, rows_of
from networks import clip, token_ids, tokenizer

# CLIP's own statistics of pixels.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def augment(x):
    """Shifts, noise, changes of tint and scale of pictures in [0, 1]; the background is white."""
    pad = 5
    x = F.pad(x, (pad, pad, pad, pad), value=1.0)
    top, left = torch.randint(0, 2 * pad + 1, (2,)).tolist()
    x = x[..., top : top + 64, left : left + 64]
    noise = 0.03 * torch.randn_like(x)
    tint = 0.06 * (torch.rand(len(x), 3, 1, 1, device=x.device) - 0.5)
    x = (x + noise + tint).clamp(0, 1)
    scale = 0.85 + 0.3 * torch.rand(1).item()
    transform = torch.tensor([[1 / scale, 0, 0], [0, 1 / scale, 0]], device=x.device)
    grid = F.affine_grid(transform[None].expand(len(x), -1, -1), x.shape, align_corners=False)
    return 1 - F.grid_sample(1 - x, grid, align_corners=False)


def normalised(x):
    """Pixels in [0, 1] as the vision tower reads them."""
    mean = torch.tensor(MEAN, device=x.device)[None, :, None, None]
    std = torch.tensor(STD, device=x.device)[None, :, None, None]
    return (x - mean) / std


def embeddings(model, ids, pixels):
    """Text and image embeddings."""
    output = model(input_ids=ids, pixel_values=pixels)
    return output.text_embeds, output.image_embeds


def contrastive_loss(model, ids, text, image):
    """Symmetric cross-entropy; pairs of one caption share the target."""
    text = F.normalize(text.float(), dim=-1)
    image = F.normalize(image.float(), dim=-1)
    logits = model.logit_scale.exp().clamp(max=100) * image @ text.T
    same = (ids[:, None] == ids[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    to_text = -(target * logits.log_softmax(1)).sum(1).mean()
    to_image = -(target * logits.log_softmax(0)).sum(0).mean()
    return to_text / 2 + to_image / 2


@torch.no_grad()
def top_1(model, ids, images):
    """Share of pictures that find their text, and of texts that find their picture."""
    model.eval()
    text, image = embeddings(model, ids, normalised(images.float() / 255))
    model.train()
    similarity = image @ text.T
    own = torch.arange(len(ids), device=ids.device)
    to_text = (similarity.argmax(1) == own).float().mean().item()
    to_image = (similarity.argmax(0) == own).float().mean().item()
    return to_text, to_image


def main():
    arguments = training_parser(__doc__, minutes=8, batch=512).parse_args()
    device = arguments.device
    prepare()
    tok = tokenizer()
    model = clip(tok).to(device)
    rows = rows_of()
    images = pictures(rows).to(device)
    ids = token_ids(tok, [caption(row) for row in rows]).to(device)
    in_train = torch.tensor([row["split"] == "train" for row in rows], device=device)
    train = in_train.nonzero()[:, 0]
    held_out = (~in_train).nonzero()[:, 0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-4, weight_decay=0.1, betas=(0.9, 0.98))
    step = 0
    for share in spent(arguments.minutes):
        warm_up = min(1, (step + 1) / 300)
        cosine = 0.5 + 0.5 * math.cos(math.pi * share)
        set_learning_rate(optimizer, 8e-4 * warm_up * cosine)
        index = train[torch.randint(len(train), (arguments.batch,), device=device)]
        with torch.autocast(device, torch.bfloat16):
            pixels = normalised(augment(images[index].float() / 255))
            text, image = embeddings(model, ids[index], pixels)
        loss = contrastive_loss(model, ids[index], text, image)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 500 == 0:
            scores = top_1(model, ids[held_out], images[held_out])
            print(f"clip {step} loss {loss.item():.3f} held-out top-1 {scores}", flush=True)
    scores = top_1(model, ids[held_out], images[held_out])
    print(f"clip: {step} steps, held-out top-1 of {len(held_out)}: {scores}", flush=True)
    folder = f"{arguments.out}/clip"
    model.eval().to("cpu", torch.float16).save_pretrained(folder)
    tok.save_pretrained(folder)
    crop = {"height": 64, "width": 64}
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=crop).save_pretrained(folder)


if __name__ == "__main__":
    main()
