"""Types of command-line options."""

import argparse


def pattern(text):
    """ "2:4" as (2, 4): two pruned of every four weights of a row."""
    try:
        n, m = (int(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form N:M") from None
    if not 0 < n < m:
        raise argparse.ArgumentTypeError(f"{text!r}: N must lie between 0 and M")
    return n, m


def share(text):
    """A sparsity: at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie in [0, 1)")
    return value
