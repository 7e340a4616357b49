"""Writes tests/goldens/schedulers.json: runs of diffusers' schedulers with a toy model.

    python tools/make_scheduler_fixtures.py [OUT]

The toy model's output is 0.8 sin(1.3 x + 0.002 t) + 0.1 x, element by element, of what the scheduler
gives it for x and t. A case holds the text of a configuration, the steps, the timesteps, the factor of
the noise at the start, and the latents at the end. The start is the same for all; noise that a
scheduler adds is `noise`, draw by draw. Numbers have 8 digits.

The schedulers' tables are theirs, in float32; what is done with them is in float64, as in float32 some
runs (Euler from a zero signal-to-noise ratio, Heun in two steps) lose more digits than are compared.
"""

import itertools
import json
import sys
from pathlib import Path

import diffusers
import torch

SHAPE = (2, 3, 2, 5)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACINGS = ["linspace", "leading", "trailing"]
TRAINED = {"num_train_timesteps": 25, "trained_betas": [0.01 + 0.004 * i for i in range(25)]}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
ZERO_SNR = {**SD, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
V = {"prediction_type": "v_prediction"}
X = {"prediction_type": "sample"}
KARRAS = {"use_karras_sigmas": True}
MIN = {"final_sigmas_type": "sigma_min"}
THRESHOLD = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

# As shipped with the models.
SD15 = {
    **SD, "clip_sample": False, "num_train_timesteps": 1000, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
}  # fmt: skip
SD21 = {**SD15, "prediction_type": "v_prediction"}
SDXL = {
    **SD15, "interpolation_type": "linear", "prediction_type": "epsilon", "sample_max_value": 1.0,
    "timestep_spacing": "leading", "use_karras_sigmas": False,
}  # fmt: skip
PIXART = {
    "algorithm_type": "dpmsolver++", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
    "dynamic_thresholding_ratio": 0.995, "euler_at_final": False, "lambda_min_clipped": -float("inf"),
    "lower_order_final": True, "num_train_timesteps": 1000, "prediction_type": "epsilon",
    "sample_max_value": 1.0, "solver_order": 2, "solver_type": "midpoint", "steps_offset": 0,
    "thresholding": False, "timestep_spacing": "linspace", "trained_betas": None,
    "use_karras_sigmas": False, "use_lu_lambdas": False, "variance_type": None,
}  # fmt: skip
DDPM = {
    "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001, "clip_sample": True,
    "num_train_timesteps": 1000, "trained_betas": None, "variance_type": "fixed_large",
}  # fmt: skip


def every(class_name, predictions, fewest=1):
    """Spacings by predictions, spacings by steps, and the betas that all classes know."""
    for spacing, prediction in itertools.product(SPACINGS, predictions):
        options = {"timestep_spacing": spacing, "prediction_type": prediction, "clip_sample": False}
        yield class_name, {**SD, **options, "steps_offset": 1}, 7
    for spacing, steps in itertools.product(SPACINGS, [fewest, fewest + 1, 20]):
        yield class_name, {**SD, "timestep_spacing": spacing, "clip_sample": False}, steps
    for betas in [TRAINED, COSINE, {}]:
        yield class_name, {**betas, "clip_sample": False}, 7


def cases():
    """All cases: class, configuration, steps."""
    for name in ["DDIMScheduler", "DDPMScheduler"]:
        yield from every(name, ["epsilon", "sample", "v_prediction"])
        for options in [{}, {"clip_sample_range": 0.7}, THRESHOLD, {**V, **THRESHOLD, "sample_max_value": 0.5}]:
            yield name, {**SD, **options}, 7
        for options in [{**ZERO_SNR, **V}, {**ZERO_SNR, **X}, {**ZERO_SNR, "timestep_spacing": "leading"}]:
            yield name, {**options, "clip_sample": False}, 7
    yield "DDIMScheduler", {**SD, "set_alpha_to_one": False}, 7
    yield "DDIMScheduler", SD21, 20
    for variance in ["fixed_small", "fixed_small_log", "fixed_large"]:
        yield "DDPMScheduler", {**SD, "variance_type": variance, "steps_offset": 1}, 7
    yield "DDPMScheduler", DDPM, 20
    for skip in [True, False]:
        for name, options, steps in every("PNDMScheduler", ["epsilon", "v_prediction"], 1 if skip else 4):
            yield name, {**options, "skip_prk_steps": skip}, steps
    yield "PNDMScheduler", {**SD, "set_alpha_to_one": True}, 7
    yield "PNDMScheduler", SD15, 20
    yield from every("EulerDiscreteScheduler", ["epsilon", "sample", "v_prediction"])
    for options in [{}, {"timestep_spacing": "leading"}, MIN, {"sigma_min": 0.1, "sigma_max": 10.0}, V]:
        for steps in [1, 7, 20]:
            yield "EulerDiscreteScheduler", {**SD, **options, **KARRAS}, steps
    yield "EulerDiscreteScheduler", {**SD, **MIN}, 7
    yield "EulerDiscreteScheduler", {**ZERO_SNR, **V}, 7
    yield "EulerDiscreteScheduler", ZERO_SNR, 7
    yield "EulerDiscreteScheduler", SDXL, 20
    yield from every("EulerAncestralDiscreteScheduler", ["epsilon", "v_prediction"])
    yield "EulerAncestralDiscreteScheduler", {**ZERO_SNR, **V}, 7
    yield "EulerAncestralDiscreteScheduler", SDXL, 20
    yield from every("HeunDiscreteScheduler", ["epsilon", "sample", "v_prediction"])
    for options in [KARRAS, {"clip_sample": True}, {**V, "clip_sample": True}]:
        yield "HeunDiscreteScheduler", {**SD, **options}, 7
    # In few steps from 20 000 to 0.006, each Heun step makes rounding a hundred times larger.
    yield "HeunDiscreteScheduler", {**KARRAS, **COSINE, **X}, 20
    yield from every("DPMSolverMultistepScheduler", ["epsilon", "sample", "v_prediction"])
    for order, solver, steps in itertools.product([1, 2, 3], ["midpoint", "heun"], [7, 20]):
        yield "DPMSolverMultistepScheduler", {**SD, "solver_order": order, "solver_type": solver}, steps
    for options in [
        KARRAS, {**KARRAS, **COSINE}, MIN, {**MIN, **KARRAS}, {"lower_order_final": False}, THRESHOLD,
        {**MIN, "euler_at_final": True}, {**MIN, "lower_order_final": False, "solver_order": 3},
        {"solver_type": "bh2"}, {**ZERO_SNR, **V}, {**ZERO_SNR, **X}, ZERO_SNR,
        {**FLOW, "flow_shift": 3.0}, {**FLOW, **MIN}, {"use_flow_sigmas": True, "flow_shift": 2.0},
    ]:  # fmt: skip
        for steps in [7, 20]:
            yield "DPMSolverMultistepScheduler", {**SD, **options}, steps
    yield "DPMSolverMultistepScheduler", PIXART, 20


def stay_in_float64():
    """Keeps the schedulers from casting samples back to float32."""
    cast = torch.Tensor.to

    def to(tensor, *arguments, **options):
        wanted = (*arguments, *options.values())
        stays = tensor.dtype == torch.float64 and torch.float32 in wanted
        return tensor if stays else cast(tensor, *arguments, **options)

    torch.Tensor.to = to


def draw_from(noise):
    """A stand-in for `randn_tensor` that hands out `noise` draw by draw."""
    draws = iter(noise)
    return lambda *_, **__: next(draws)


def run(class_name, options, steps, start, noise):
    """One case."""
    scheduler = getattr(diffusers, class_name).from_config(options)
    module = sys.modules[type(scheduler).__module__]
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = draw_from(noise)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else lost where the first two timesteps are the same
    for name, value in vars(scheduler).items():
        if torch.is_tensor(value) and value.dtype == torch.float32:
            setattr(scheduler, name, value.double())
    latents = start * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        x = scheduler.scale_model_input(latents, timestep)
        output = 0.8 * torch.sin(1.3 * x + 0.002 * timestep) + 0.1 * x
        latents = scheduler.step(output, timestep, latents).prev_sample
    if not latents.isfinite().all():
        raise SystemExit(f"{class_name}, {options}, {steps} steps: not finite")
    return {
        "config": json.dumps({"_class_name": class_name, **options}),
        "steps": steps,
        "timesteps": numbers(scheduler.timesteps),
        "initial_scale": float(scheduler.init_noise_sigma),
        "latents": numbers(latents),
    }


def numbers(tensor):
    """A flat list."""
    return [float(f"{value:.8g}") for value in tensor.flatten().tolist()]


def main():
    default = Path(__file__).parents[1] / "tests/goldens/schedulers.json"
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    torch.manual_seed(0)
    start, noise = torch.randn(SHAPE).double(), torch.randn((20, *SHAPE)).double()
    stay_in_float64()
    runs = [json.dumps(run(*case, start, noise), separators=(",", ":")) for case in cases()]
    head = f'"shape":{list(SHAPE)},"start":{numbers(start)},\n"noise":{[numbers(draw) for draw in noise]}'
    text = "{" + head.replace(", ", ",") + ',\n"cases":[\n' + ",\n".join(runs) + "\n]}\n"
    out.write_text(text, encoding="utf-8")
    print(f"{len(runs)} cases, {len(text)} bytes")


if __name__ == "__main__":
    main()
