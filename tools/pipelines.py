"""Stock diffusers pipelines of the folders secateur reads and writes."""

import inspect
import json
import re
from pathlib import Path

import diffusers
import torch

# The attention and feed-forward layers of a transformer block, in both streams.
BLOCK_LINEAR = re.compile(
    r"transformer_blocks\.\d+\.(attn\d?|ff|ff_context|proj_mlp|proj_out)(\.|$)"
)


def read_json(path):
    """The content of a JSON file that must be there."""
    if not path.is_file():
        raise SystemExit(f"{path}: no such file")
    return json.loads(path.read_text(encoding="utf-8"))


def open_pipeline(folder, dtype=torch.float32):
    """The pipeline that model_index.json names; components it lists as absent are None."""
    index = read_json(Path(folder) / "model_index.json")
    absent = {name: None for name, value in index.items() if value == [None, None]}
    pipeline_class = getattr(diffusers, index["_class_name"], None)
    if pipeline_class is None:
        raise SystemExit(f"{folder}: diffusers has no pipeline {index['_class_name']}")
    pipeline = pipeline_class.from_pretrained(folder, torch_dtype=dtype, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generation(folder):
    """The generation defaults that secateur.json keeps with the model."""
    return read_json(Path(folder) / "secateur.json")["generation"]


def prompts(folder, kind):
    """The prompts of a kind, "calibration" or "held_out", that secateur.json names."""
    return read_prompts(Path(folder) / read_json(Path(folder) / "secateur.json")["prompts"][kind])


def read_prompts(path):
    """The lines of a prompt file."""
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]


def draw(pipeline, prompts, defaults, seed=0, **options):
    """Calls the pipeline with texts, or with class names where it takes classes.

    `defaults` holds what secateur.json does: steps, guidance, max_sequence_length if it matters.
    """
    accepted = inspect.signature(pipeline.__call__).parameters
    if "class_labels" in accepted:
        options["class_labels"] = pipeline.get_label_ids(prompts)
    else:
        options["prompt"] = prompts
    if "max_sequence_length" in accepted and "max_sequence_length" in defaults:
        options["max_sequence_length"] = defaults["max_sequence_length"]
    return pipeline(
        num_inference_steps=defaults["steps"],
        guidance_scale=defaults["guidance"],
        generator=torch.Generator("cpu").manual_seed(seed),
        **options,
    ).images


def denoiser_name(pipeline):
    """The component that is pruned: "transformer" or "unet"."""
    return "transformer" if "transformer" in pipeline.components else "unet"


def block_linears(pipeline):
    """The attention and feed-forward linears of the denoiser's transformer blocks, by name."""
    denoiser = getattr(pipeline, denoiser_name(pipeline))
    return {
        name: module
        for name, module in denoiser.named_modules()
        if isinstance(module, torch.nn.Linear) and BLOCK_LINEAR.search(name)
    }
