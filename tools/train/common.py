"""What every training script does: its arguments, its seed and its wall-clock budget."""

import argparse
import time

import torch


def parser(description):
    """An argument parser with the options that all scripts share."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--out", default="run/out", help="folder of the models and latents")
    result.add_argument("--device", default="cuda", help="where to compute: cuda or cpu")
    return result


def training_parser(description, minutes, batch):
    """The same with the length of the training and the batch."""
    result = parser(description)
    result.add_argument("--minutes", type=float, default=minutes, help="wall-clock budget")
    result.add_argument("--batch", type=int, default=batch, help="pictures a step")
    return result


def prepare():
    """Fixes the seed and lets CUDA use its fast paths."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def spent(minutes):
    """Yields the share of the wall-clock budget that is spent, until all of it is."""
    start = time.time()
    while (share := (time.time() - start) / (60 * minutes)) < 1:
        yield share


def set_learning_rate(optimizer, rate):
    """Sets the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate
