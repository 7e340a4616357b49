"""The prompt files and generation defaults that travel with the bundled generators.

Calibration prompts come from the pictures the models were trained on, held-out prompts from the
others, and no caption is in both. Classes have no held-out label: emoji-dit saw all of them.
"""

import argparse
import json
import random
from pathlib import Path

from emoji import all_rows, caption, class_names

MODELS = Path(__file__).resolve().parents[2] / "models"
CALIBRATION_CAPTIONS = 1000
CALIBRATION_LABELS = 200


def shuffled(prompts, seed):
    """The prompts without repeats, in an order fixed by the seed."""
    prompts = sorted(set(prompts))
    random.Random(seed).shuffle(prompts)
    return prompts


def caption_prompts(seed):
    """Calibration and held-out captions."""
    rows = all_rows()
    held_out = {caption(row) for row in rows if row["split"] != "train"}
    train = {caption(row) for row in rows if row["split"] == "train"} - held_out
    return shuffled(train, seed)[:CALIBRATION_CAPTIONS], shuffled(held_out, seed)


def label_prompts(seed):
    """Labels drawn uniformly to calibrate with, and each label once to judge with."""
    names = class_names()
    return random.Random(seed).choices(names, k=CALIBRATION_LABELS), names


def write(folder, generation, calibration, held_out):
    """Writes secateur.json and the prompt files it names."""
    prompts = {"calibration": "prompts/calibration.txt", "held_out": "prompts/held_out.txt"}
    (folder / "prompts").mkdir(exist_ok=True)
    for name, lines in (("calibration", calibration), ("held_out", held_out)):
        text = "".join(f"{line}\n" for line in lines)
        (folder / prompts[name]).write_text(text, encoding="utf-8", newline="\n")
    manifest = {
        "format_version": 1,
        "generation": generation,
        "prompts": prompts,
        "clip": "../emoji-clip",
    }
    if (folder / "prompts" / "captions.txt").is_file():
        manifest["captions"] = "prompts/captions.txt"
    text = json.dumps(manifest, indent=2) + "\n"
    (folder / "secateur.json").write_text(text, encoding="utf-8", newline="\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the bundled models")
    parser.add_argument("--seed", type=int, default=0, help="fixes the choice and the order")
    arguments = parser.parse_args()
    captions = caption_prompts(arguments.seed)
    mmdit = {"steps": 25, "guidance": 4.0, "max_sequence_length": 32}
    unet = {"steps": 25, "guidance": 4.0}
    dit = {"steps": 25, "guidance": 3.0}
    write(arguments.models / "emoji-mmdit", mmdit, *captions)
    write(arguments.models / "emoji-unet", unet, *captions)
    write(arguments.models / "emoji-dit", dit, *label_prompts(arguments.seed))


if __name__ == "__main__":
    main()
