"""Writes tests/goldens/obs/dsnot.safetensors: masks as DSnoT's own code makes them.

    python tools/make_dsnot_fixture.py [OUT]

The algorithm is that of lib/prune.py in https://github.com/zyxxmu/DSnoT, told again for one row and in
float64: its sorted lists, walked from both ends. E[x] is the mean over all rows of x, where the code
has the sum over a sample's, and Var[x] the variance over all rows, where it averages over batches. A
row is left as soon as it is done, where the code goes on writing into it while others are not. The
cases are such that no list runs out.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

ROWS, COLUMNS, TOKENS = 24, 64, 400
ROUNDS, THRESHOLD = 50, 0.1
CASES = {"50": (0.5, None), "70": (0.7, None), "2_4": (None, (2, 4)), "4_8": (None, (4, 8))}


def lowest_first(start, share, pattern):
    """Places of the weights that the start prunes, and of those it keeps."""
    if pattern is None:
        order = torch.argsort(start, stable=True)
        return order.tensor_split([int(len(start) * share)])
    count, group = pattern
    order = torch.argsort(start.view(-1, group), stable=True) + torch.arange(0, len(start), group)[:, None]
    return order[:, :count].flatten(), order[:, count:].flatten()


def mask(weight, mean, variance, wanda, start, share, pattern):
    """Which weights of one row are pruned in the end."""
    m = weight * mean
    out, kept = lowest_first(start, share, pattern)
    pruned = torch.zeros(len(weight), dtype=torch.bool)
    pruned[out] = True
    error = m[out].sum()
    first_sign = error.sign()

    growing = out[torch.argsort(m[out] / variance[out], stable=True)].tolist()
    by_wanda = kept[torch.argsort(wanda[kept], stable=True)].tolist()
    cutting = {sign: [j for j in by_wanda if m[j] * sign > 0] for sign in (-1, 1)}
    left = start.clone()
    left[out] = float("inf")
    for _ in range(ROUNDS):
        if error.abs() <= THRESHOLD:
            break
        sign = 1 if error > 0 else -1
        grown = growing.pop(-1 if sign > 0 else 0)
        assert m[grown] * sign > 0, "the list has run out"
        if pattern is None:
            cut = cutting[-sign].pop(0)
        else:
            first = grown - grown % pattern[1]
            cut = first + int(left[first : first + pattern[1]].argmin())
            assert left[cut] < float("inf"), "the group has run out"
        after = error + m[cut] - m[grown]
        if pattern is not None and after.sign() != first_sign:
            break
        pruned[grown], pruned[cut], left[cut] = False, True, float("inf")
        error = after
    return pruned


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "tests/goldens/obs/dsnot.safetensors"
    random = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    mixed = draw(COLUMNS, COLUMNS) / COLUMNS**0.5
    x = draw(TOKENS, COLUMNS) @ mixed * (1 + draw(COLUMNS).abs()) + draw(COLUMNS)
    weight = (0.1 * draw(ROWS, COLUMNS)).float()
    # As they are stored, so that both sides start from the same numbers.
    sums, squares, hessian = x.sum(0).float(), x.square().sum(0).float(), (2 * x.T @ x / TOKENS).float()

    w, mean, square, h = weight.double(), sums.double() / TOKENS, squares.double() / TOKENS, hessian.double()
    variance, wanda = square - mean**2, w.abs() * square.sqrt()
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(COLUMNS)
    u = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    rows = torch.tensor(TOKENS, dtype=torch.uint32)
    tensors = {"weight": weight, "sums": sums, "squares": squares, "rows": rows, "hessian": hessian}
    for name, start in {"wanda": wanda, "hessian": (w / u.diagonal()) ** 2}.items():
        for case, (share, pattern) in CASES.items():
            masks = [mask(w[i], mean, variance, wanda[i], start[i], share, pattern) for i in range(ROWS)]
            tensors[f"{name}_{case}"] = torch.stack(masks).to(torch.uint8)
    save_file(tensors, out)


if __name__ == "__main__":
    main()
