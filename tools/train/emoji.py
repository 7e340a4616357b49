"""The emoji set: captions, classes, rows and pictures."""

import io
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

DATA = Path(__file__).resolve().parents[2] / "data"


def caption(row, style=True):
    """The text of a picture, with its style or without."""
    return f"{row['name']}, {row['style']} style emoji" if style else f"{row['name']} emoji"


def all_rows():
    """Every row of the set, in its order."""
    return json.loads((DATA / "emoji64.json").read_text(encoding="utf-8"))


def rows_of(split=None):
    """The rows of a split ("train", "heldout"), or all.

    LIMIT=N in the environment thins them to about N, for dry runs.
    """
    rows = [row for row in all_rows() if split in (None, row["split"])]
    if os.environ.get("LIMIT"):
        rows = rows[:: max(1, len(rows) // int(os.environ["LIMIT"]))]
    return rows


def pictures(rows):
    """The pictures of the rows: uint8, rows x 3 x 64 x 64."""
    blob = (DATA / "emoji64.bin").read_bytes()
    slices = (blob[row["offset"] : row["offset"] + row["size"]] for row in rows)
    arrays = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in slices]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def class_name(row):
    """The class of a picture, as the DiT is told it: category and style."""
    return f"{row['category']}/{row['style']}"


def class_names():
    """The names of all classes; a label is the place in this list."""
    return sorted({class_name(row) for row in all_rows()})


def class_labels(rows):
    """The label of each row."""
    label = {name: index for index, name in enumerate(class_names())}
    return [label[class_name(row)] for row in rows]
