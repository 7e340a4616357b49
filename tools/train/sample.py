"""A sheet of held-out pictures, each above what a generator draws for its caption or class."""

import random

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from common import parser
from emoji import caption, class_labels, pictures, rows_of
from networks import MAX_LENGTH

COLUMNS = 16
SIZE = 64


def draw(arguments, rows):
    """Pictures for the rows, through stock diffusers."""
    absent = {"text_encoder_3": None, "tokenizer_3": None} if arguments.kind == "mmdit" else {}
    folder = f"{arguments.out}/{arguments.kind}"
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, **absent)
    options = {
        "num_inference_steps": arguments.steps,
        "generator": torch.Generator("cpu").manual_seed(0),
    }
    if arguments.kind == "dit":
        options.update(class_labels=class_labels(rows), guidance_scale=3.0)
    else:
        options.update(prompt=[caption(row) for row in rows], guidance_scale=4.0)
    if arguments.kind == "mmdit":
        options.update(max_sequence_length=MAX_LENGTH)
    return pipeline.to(arguments.device)(**options).images


def main():
    options = parser(__doc__)
    options.add_argument("--kind", choices=("mmdit", "unet", "dit"), required=True)
    options.add_argument("--n", type=int, default=64, help="pictures")
    options.add_argument("--steps", type=int, default=25, help="denoising steps")
    arguments = options.parse_args()
    rows = random.Random(3).sample(rows_of("heldout"), arguments.n)
    originals = pictures(rows).permute(0, 2, 3, 1).numpy()
    lines = -(-arguments.n // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIZE, lines * 2 * SIZE), "white")
    for index, (original, drawn) in enumerate(zip(originals, draw(arguments, rows))):
        line, column = divmod(index, COLUMNS)
        sheet.paste(Image.fromarray(original), (column * SIZE, 2 * line * SIZE))
        sheet.paste(drawn, (column * SIZE, (2 * line + 1) * SIZE))
    sheet.save(f"{arguments.out}/samples_{arguments.kind}.png")


if __name__ == "__main__":
    main()
