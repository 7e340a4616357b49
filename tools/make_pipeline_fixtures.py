"""Small pipelines of random weights, and what diffusers 0.42.1 makes of them: tests/goldens/pipelines.

Denoisers, the autoencoder and the tokenizers are those of other fixtures and models; `links.json` of each pipeline tells
where they are, relative to tests/goldens. Run from the root of the repository.
"""
import json
import os
import pathlib

import torch
from diffusers import (
    AutoencoderKL, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler,
    FluxPipeline, FluxTransformer2DModel, PixArtAlphaPipeline, PixArtTransformer2DModel, SD3Transformer2DModel,
    StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizerFast, T5Config, T5EncoderModel,
)

GOLDENS = pathlib.Path("tests/goldens")
OUT = GOLDENS / "pipelines"
PROMPTS = ["red apple, noto style emoji", "Spider"]
CLIP_TOKENIZER, T5_TOKENIZER = "../../models/emoji-unet/tokenizer", "t5_tokenizer"


def save(model, name):
    model = model.half()
    model.save_pretrained(OUT / name, safe_serialization=True)
    return model.float().eval()


def clip(width, projection=None):
    torch.manual_seed(width)
    config = CLIPTextConfig(
        vocab_size=2014, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, projection_dim=projection or width, bos_token_id=2012, eos_token_id=2013,
    )
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return save(kind(config), f"clip_{width}" + ("_projected" if projection else ""))


def t5(width):
    torch.manual_seed(width)
    config = T5Config(
        vocab_size=300, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        is_encoder_decoder=False, use_cache=False,
    )
    return save(T5EncoderModel(config), f"t5_{width}")


def component(kind, name):
    return kind.from_pretrained(GOLDENS / name, torch_dtype=torch.float32).eval()


def write(name, pipeline, links, steps, guidance, size, length=None, index=None, **arguments):
    """`size`: height and width of the latents."""
    folder = OUT / name
    os.makedirs(folder / "scheduler", exist_ok=True)
    listed = {"_class_name": type(pipeline).__name__, **(index or {})}
    for key, target in links.items():
        value = getattr(pipeline, key)
        library = type(value).__module__.split(".")[0] if value is not None else None
        listed[key] = [library, type(value).__name__] if value is not None else [None, None]
    listed["scheduler"] = ["diffusers", type(pipeline.scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(listed, indent=2) + "\n")
    pipeline.scheduler.save_config(folder / "scheduler")
    links = {key: target for key, target in links.items() if target}
    (folder / "links.json").write_text(json.dumps(links, indent=2) + "\n")
    generation = {"steps": steps, "guidance": guidance}
    if length:
        generation["max_sequence_length"] = arguments["max_sequence_length"] = length
    (folder / "secateur.json").write_text(json.dumps({"format_version": 1, "generation": generation}, indent=2) + "\n")

    pipeline.set_progress_bar_config(disable=True)
    factor = 4
    height, width = size[0] * factor, size[1] * factor
    noise = torch.randn(len(PROMPTS), 4, *size, generator=torch.manual_seed(7))
    latents = noise
    if isinstance(pipeline, FluxPipeline):
        latents = pipeline._pack_latents(noise, len(PROMPTS), 4, *size)
    arguments |= dict(
        prompt=PROMPTS, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width, output_type="latent",
    )
    with torch.no_grad():
        result = pipeline(latents=latents.clone(), **arguments).images
        if isinstance(pipeline, FluxPipeline):
            result = pipeline._unpack_latents(result, height, width, pipeline.vae_scale_factor)
        vae = pipeline.vae
        shift = vae.config.shift_factor or 0.0
        image = vae.decode(result / vae.config.scaling_factor + shift).sample
    image = (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous()
    told = {"prompts": PROMPTS, "negative_prompt": arguments.get("negative_prompt", [""])[0]}
    (folder / "run.json").write_text(json.dumps(told, indent=2) + "\n")
    save_file({"noise": noise, "latents": result.contiguous(), "image": image}, folder / "run.safetensors")


def write_ddpm():
    """A pipeline without prompts, and without a run: its sampler draws noise."""
    folder = OUT / "ddpm"
    DDPMScheduler().save_config(folder / "scheduler")
    listed = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(listed, indent=2) + "\n")
    (folder / "links.json").write_text(json.dumps({"unet": "ddpm_unet"}, indent=2) + "\n")


def main():
    clip_tokenizer = CLIPTokenizerFast.from_pretrained(GOLDENS / CLIP_TOKENIZER)
    t5_tokenizer = AutoTokenizer.from_pretrained(GOLDENS / T5_TOKENIZER)
    vae = component(AutoencoderKL, "sd_vae")
    scaled = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)

    ddim = DDIMScheduler(
        **scaled, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )
    pipeline = StableDiffusionPipeline(
        unet=component(UNet2DConditionModel, "sd21_unet"), vae=vae, text_encoder=clip(40), tokenizer=clip_tokenizer,
        scheduler=ddim, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )
    links = {"unet": "sd21_unet", "vae": "sd_vae", "text_encoder": "pipelines/clip_40", "tokenizer": CLIP_TOKENIZER}
    write("stable_diffusion_2", pipeline, links, 4, 3.0, (16, 16), negative_prompt=["blurred"] * 2)

    first, second = clip(16), clip(32, 20)
    pipeline = StableDiffusionXLPipeline(
        unet=component(UNet2DConditionModel, "sdxl_unet"), vae=vae, text_encoder=first, text_encoder_2=second,
        tokenizer=clip_tokenizer, tokenizer_2=clip_tokenizer,
        scheduler=EulerDiscreteScheduler(**scaled, timestep_spacing="leading"), add_watermarker=False,
    )
    links = {
        "unet": "sdxl_unet", "vae": "sd_vae", "text_encoder": "pipelines/clip_16",
        "text_encoder_2": "pipelines/clip_32_projected", "tokenizer": CLIP_TOKENIZER, "tokenizer_2": CLIP_TOKENIZER,
    }
    index = {"force_zeros_for_empty_prompt": True}
    write("stable_diffusion_xl", pipeline, links, 4, 5.0, (16, 24), index=index)

    first, second, third = clip(8, 12), clip(16, 8), t5(24)
    links = {
        "transformer": "sd3_mmdit", "vae": "sd_vae", "text_encoder": "pipelines/clip_8_projected",
        "text_encoder_2": "pipelines/clip_16_projected", "text_encoder_3": "pipelines/t5_24",
        "tokenizer": CLIP_TOKENIZER, "tokenizer_2": CLIP_TOKENIZER, "tokenizer_3": T5_TOKENIZER,
    }
    pipeline = StableDiffusion3Pipeline(
        transformer=component(SD3Transformer2DModel, "sd3_mmdit"), vae=vae, text_encoder=first, text_encoder_2=second,
        text_encoder_3=third, tokenizer=clip_tokenizer, tokenizer_2=clip_tokenizer, tokenizer_3=t5_tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    write("stable_diffusion_3", pipeline, links, 4, 4.0, (16, 24), 20)

    links = {
        "transformer": "flux_transformer", "vae": "sd_vae", "text_encoder": "pipelines/clip_20",
        "text_encoder_2": "pipelines/t5_24", "tokenizer": CLIP_TOKENIZER, "tokenizer_2": T5_TOKENIZER,
    }
    pipeline = FluxPipeline(
        transformer=component(FluxTransformer2DModel, "flux_transformer"), vae=vae, text_encoder=clip(20),
        text_encoder_2=third, tokenizer=clip_tokenizer, tokenizer_2=t5_tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
    )
    write("flux", pipeline, links, 4, 3.5, (16, 12), 20)

    links = {
        "transformer": "pixart_transformer", "vae": "sd_vae", "text_encoder": "pipelines/t5_24",
        "tokenizer": T5_TOKENIZER,
    }
    pipeline = PixArtAlphaPipeline(
        transformer=component(PixArtTransformer2DModel, "pixart_transformer"), vae=vae, text_encoder=third,
        tokenizer=t5_tokenizer,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )
    extra = dict(use_resolution_binning=False, clean_caption=False)
    write("pixart", pipeline, links, 4, 4.5, (16, 12), 20, **extra)
    write_ddpm()


main()
