"""Pastes the pictures of two folders that `secateur generate` wrote into one, a column a prompt."""

import argparse
from pathlib import Path

from PIL import Image

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("above", type=Path, help="folder of the pictures above")
parser.add_argument("below", type=Path, help="folder of the pictures below")
parser.add_argument("out", type=Path, help="PNG to write")
parser.add_argument("--side", type=int, default=96, help="pixels a picture")
arguments = parser.parse_args()

rows = [sorted(folder.glob("*.png")) for folder in (arguments.above, arguments.below)]
side, gap = arguments.side, 4
sheet = Image.new("RGB", (len(rows[0]) * (side + gap) - gap, 2 * side + gap), "white")
for row, files in enumerate(rows):
    for column, file in enumerate(files):
        picture = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(picture, (column * (side + gap), row * (side + gap)))
sheet.save(arguments.out, optimize=True)
