"""Writes tests/goldens/single_file/KIND.json: tiny checkpoints under original names, and what diffusers makes of them.

    python tools/make_single_file_fixtures.py [OUT]

Each file holds `folder`, the JSON files of a model folder; `original`, type and shape of every tensor of
the single file; and `diffusers`, type, shape and checksum of every tensor of every component after
diffusers' own conversion, which must be those that its model has. The checksum is the sum of (i + 1) x_i
modulo 2^32, for x the tensor's numbers as integers.

No numbers are stored: number i of the n-th original tensor, in the order of their names, is
(7919 n + 31 i) modulo 2003, in F32 for even n and else in F16, where all are exact.

The original names come from the models' own by substitutions: NAME@0, NAME@1 and so on are fused to NAME,
and NAME@T is transposed. That they are right is shown by diffusers' conversion, which must find them all.
Names are stored as objects within objects.
"""

import inspect
import json
import re
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils as peer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
UNET = {
    "block_out_channels": [4, 8], "norm_num_groups": 2, "attention_head_dim": 2, "cross_attention_dim": 6,
    "sample_size": 8, "layers_per_block": 1, "in_channels": 2, "out_channels": 2,
}  # fmt: skip
SD1 = {**UNET, "layers_per_block": 2, "down_block_types": [CROSS_DOWN, DOWN], "up_block_types": [UP, CROSS_UP]}
SD2 = {
    **UNET, "down_block_types": [CROSS_DOWN, CROSS_DOWN, DOWN], "up_block_types": [UP, CROSS_UP, CROSS_UP],
    "block_out_channels": [4, 8, 8], "use_linear_projection": True,
}  # fmt: skip
SDXL = {
    **UNET, "down_block_types": [DOWN, CROSS_DOWN], "up_block_types": [CROSS_UP, UP],
    "transformer_layers_per_block": [1, 2], "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 2, "projection_class_embeddings_input_dim": 18,
}  # fmt: skip
SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 2, "out_channels": 2, "num_layers": 2, "attention_head_dim": 4,
    "num_attention_heads": 2, "caption_projection_dim": 8, "joint_attention_dim": 6, "pooled_projection_dim": 5,
    "pos_embed_max_size": 4, "dual_attention_layers": [0], "qk_norm": "rms_norm",
}  # fmt: skip
FLUX = {
    "in_channels": 8, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 8, "num_attention_heads": 1,
    "joint_attention_dim": 6, "pooled_projection_dim": 5, "guidance_embeds": True, "axes_dims_rope": [2, 2, 4],
}  # fmt: skip
VAE = {
    "block_out_channels": [4, 8], "down_block_types": ["DownEncoderBlock2D"] * 2, "norm_num_groups": 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 2, "layers_per_block": 1,
}  # fmt: skip
CLIP = {
    "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "vocab_size": 11,
    "max_position_embeddings": 5, "projection_dim": 6, "num_hidden_layers": 1,
}  # fmt: skip
T5 = {
    "vocab_size": 11, "d_model": 6, "d_kv": 3, "d_ff": 8, "num_layers": 1, "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

RESNET_NAMES = [
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"),
]  # fmt: skip
VAE_NAMES = [
    (r"up_blocks\.(\d)", lambda m: f"up.{1 - int(m[1])}"), ("down_blocks", "down"), ("conv_norm_out", "norm_out"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"), (r"mid_block\.attentions\.0", "mid.attn_1"),
    ("resnets", "block"), (r"samplers\.0", "sample"), ("conv_shortcut", "nin_shortcut"), ("group_norm", "norm"),
    ("to_([qkv])", r"\1"), (r"to_out\.0", "proj_out"),
]  # fmt: skip
CLIP_NAMES = [("^(embeddings|encoder|final_layer_norm)", r"text_model.\1")]
OPEN_CLIP_NAMES = [
    (r"^(text_model\.)?embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^(text_model\.)?embeddings\.", ""), (r"^(text_model\.)?final_layer_norm", "ln_final"),
    (r"^(text_model\.)?encoder\.layers", "transformer.resblocks"), ("layer_norm", "ln_"), ("self_attn", "attn"),
    (r"([qkv])_proj\.(\w+)", lambda m: f"in_proj_{m[2]}@{'qkv'.index(m[1])}"), ("fc1", "c_fc"), ("fc2", "c_proj"),
    (r"text_projection\.weight", "text_projection@T"),
]  # fmt: skip
MMDIT_NAMES = [
    (r"pos_embed\.pos_embed", "pos_embed"), (r"pos_embed\.proj", "x_embedder.proj"),
    ("^proj_out", "final_layer.linear"),
    (r"time_text_embed\.timestep_embedder\.linear_", "t_embedder.mlp."), (r"(mlp)\.1", r"\1.0"),
    (r"time_text_embed\.text_embedder\.linear_", "y_embedder.mlp."), (r"(mlp)\.1", r"\1.0"),
    (r"norm_out\.linear", "final_layer.adaLN_modulation.1"), ("transformer_blocks", "joint_blocks"),
    (r"norm1\.linear", "x_block.adaLN_modulation.1"), (r"norm1_context\.linear", "context_block.adaLN_modulation.1"),
    (r"(attn2?)\.to_([qkv])", lambda m: f"x_block.{m[1]}.qkv@{'qkv'.index(m[2])}"),
    (r"attn\.add_([qkv])_proj", lambda m: f"context_block.attn.qkv@{'qkv'.index(m[1])}"),
    (r"(attn2?)\.norm_([qk])\.", r"x_block.\1.ln_\2."), (r"attn\.norm_added_", "context_block.attn.ln_"),
    (r"(attn2?)\.to_out\.0", r"x_block.\1.proj"), (r"attn\.to_add_out", "context_block.attn.proj"),
    (r"\bff\.net", "x_block.mlp"), (r"ff_context\.net", "context_block.mlp"), (r"mlp\.0\.proj", "mlp.fc1"),
    (r"(block\.mlp)\.2", r"\1.fc2"),
]  # fmt: skip
FLUX_NAMES = [
    ("^proj_out", "final_layer.linear"), (r"norm_out\.linear", "final_layer.adaLN_modulation.1"),
    ("context_embedder", "txt_in"), ("x_embedder", "img_in"), (r"time_text_embed\.timestep_embedder", "time_in"),
    (r"time_text_embed\.text_embedder", "vector_in"), (r"time_text_embed\.guidance_embedder", "guidance_in"),
    ("linear_1", "in_layer"), ("linear_2", "out_layer"), ("single_transformer_blocks", "single_blocks"),
    ("transformer_blocks", "double_blocks"), (r"norm1\.linear", "img_mod.lin"),
    (r"norm1_context\.linear", "txt_mod.lin"),
    (r"norm\.linear", "modulation.lin"),
    (r"(single\S*)attn\.to_([qkv])", lambda m: f"{m[1]}linear1@{'qkv'.index(m[2])}"),
    ("proj_mlp", "linear1@3"), ("proj_out", "linear2"), (r"(single\S*)attn\.norm", r"\1norm"),
    (r"attn\.to_([qkv])", lambda m: f"img_attn.qkv@{'qkv'.index(m[1])}"),
    (r"attn\.add_([qkv])_proj", lambda m: f"txt_attn.qkv@{'qkv'.index(m[1])}"),
    (r"\.attn\.norm_([qk])", r".img_attn.norm_\1"), (r"\.attn\.norm_added_([qk])", r".txt_attn.norm_\1"),
    (r"norm_q\.weight", "norm.query_norm.scale"), (r"norm_k\.weight", "norm.key_norm.scale"),
    (r"norm\.norm", "norm"), (r"\.attn\.to_out\.0", ".img_attn.proj"), (r"\.attn\.to_add_out", ".txt_attn.proj"),
    (r"ff\.net", "img_mlp"), (r"ff_context\.net", "txt_mlp"), (r"(mlp\.0)\.proj", r"\1"),
]  # fmt: skip


def unet_names(config):
    """Substitutions of a UNet, whose blocks are counted through all levels."""
    layers = config["layers_per_block"]

    def down(m):
        return f"input_blocks.{1 + int(m[1]) * (layers + 1) + int(m[3])}.{int(m[2] == 'attentions')}"

    def up(m):
        return f"output_blocks.{int(m[1]) * (layers + 1) + int(m[3])}.{int(m[2] == 'attentions')}"

    def upsampler(m):
        attends = config["up_block_types"][int(m[1])] == CROSS_UP
        return f"output_blocks.{(int(m[1]) + 1) * (layers + 1) - 1}.{1 + attends}.conv"

    return [
        *[(rf"(resnets.*\.){ours}\b", rf"\1{theirs}") for ours, theirs in RESNET_NAMES],
        (r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)", down), (r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)", up),
        (r"down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{(int(m[1]) + 1) * (layers + 1)}.0.op"),
        (r"up_blocks\.(\d)\.upsamplers\.0\.conv", upsampler), (r"mid_block\.attentions\.0", "middle_block.1"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
        (r"^time_embedding\.linear_1", "time_embed.0"), (r"^time_embedding\.linear_2", "time_embed.2"),
        (r"^add_embedding\.linear_1", "label_emb.0.0"), (r"^add_embedding\.linear_2", "label_emb.0.2"),
        ("^conv_in", "input_blocks.0.0"), ("^conv_norm_out", "out.0"), ("^conv_out", "out.2"),
    ]  # fmt: skip


def original(model, names, prefix):
    """Names and shapes of a model's tensors in a single file."""
    parts = {}
    for name, tensor in sorted(model.state_dict().items()):
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        fused, shape = re.sub("@.", "", name), list(tensor.shape)
        shape = shape[::-1] if "@T" in name else shape
        parts.setdefault(prefix + fused, []).append(shape)
    return {name: [sum(shape[0] for shape in shapes), *shapes[0][1:]] for name, shapes in parts.items()}


def flux_of(width):
    """diffusers' conversion of FLUX, for another width than that of FLUX.1."""
    code = inspect.getsource(peer.convert_flux_transformer_checkpoint_to_diffusers)
    scope = dict(vars(peer))
    exec(code.replace("inner_dim = 3072", f"inner_dim = {width}"), scope)
    return scope["convert_flux_transformer_checkpoint_to_diffusers"]


def below(file, prefix):
    """What a file holds below a prefix, of which "" is that without any of the others."""
    others = ("vae.", "first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.")
    return {name: tensor for name, tensor in file.items() if name.startswith(prefix or others) == bool(prefix)}


class Fixture:
    """A single file, and the components that it holds."""

    def __init__(self, pipeline):
        self.folder = {"model_index.json": {"_class_name": pipeline}, "scheduler/scheduler_config.json": SCHEDULER}
        self.original, self.components = {}, []
        self.list("scheduler", "DDIMScheduler")
        self.list("vae", "AutoencoderKL")

    def list(self, component, class_name):
        self.folder["model_index.json"][component] = ["diffusers", class_name]

    def tokenizers(self, *components):
        for component in components:
            self.list(component, "CLIPTokenizer")
            self.folder[f"{component}/tokenizer_config.json"] = {"model_max_length": 5}

    def add(self, component, model, config, names, prefix, convert):
        """A component, and how diffusers converts it from the whole file."""
        class_name = type(model).__name__
        self.list(component, class_name)
        says = {"_class_name": class_name} if "text" not in component else {"architectures": [class_name]}
        self.folder[f"{component}/config.json"] = {**config, **says}
        self.original.update(original(model, names, prefix))
        self.components.append((component, model, convert))

    def write(self, path):
        names = sorted(self.original)
        file = {name: numbers(n, self.original[name]) for n, name in enumerate(names)}
        converted = {}
        for component, model, convert in self.components:
            wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
            wanted.pop("encoder.embed_tokens.weight", None)  # T5's `shared` by another name
            found = {bare(name, wanted): (name, tensor) for name, tensor in convert(dict(file)).items()}
            found = {name: found[name] for name in wanted}  # as load_state_dict(strict=False), but nothing is missing
            assert all(found[name][1].shape == shape for name, shape in wanted.items())
            converted[component] = {name: described(tensor, True) for name, tensor in found.values()}
        listed = {name: described(file[name], False) for name in names}
        converted = {component: tree(tensors) for component, tensors in converted.items()}
        fixture = {"folder": self.folder, "original": tree(listed), "diffusers": converted}
        text = json.dumps(fixture, separators=(",", ":")).replace("},", "},\n")
        path.write_text(text + "\n", encoding="utf-8")
        print(path.name, len(names), "tensors", len(text), "bytes")


def bare(name, wanted):
    """A CLIPTextModel of transformers 5.6 or newer has no `text_model`, as in create_diffusers_clip_model_from_ldm."""
    return name if name in wanted else name.removeprefix("text_model.")


def tree(names):
    """Names as objects within objects."""
    root = {}
    for name, value in names.items():
        *path, last = name.split(".")
        place = root
        for step in path:
            place = place.setdefault(step, {})
        place[last] = value
    return root


def numbers(n, shape):
    """The n-th tensor of a file."""
    count = torch.Size(shape).numel()
    values = (7919 * n + 31 * torch.arange(count)) % 2003
    return values.reshape(shape).to(torch.float16 if n % 2 else torch.float32)


def described(tensor, checked):
    """Type and shape, and the checksum."""
    kind = {torch.float16: "F16", torch.float32: "F32"}[tensor.dtype]
    values = tensor.flatten().long()
    checksum = int((values * torch.arange(1, len(values) + 1)).sum()) % 2**32
    return f"{kind} {'x'.join(map(str, tensor.shape))}" + f" {checksum}" * checked


def clip(config, projected=False, **options):
    """A CLIP text encoder and its configuration."""
    config = {**config, **options}
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**config)), config


def unet(fixture, config):
    prefix, model = "model.diffusion_model.", UNet2DConditionModel(**config)
    convert = lambda file: peer.convert_ldm_unet_checkpoint(file, model.config)
    fixture.add("unet", model, config, unet_names(config), prefix, convert)


def vae(fixture, config, prefix):
    model = AutoencoderKL(**config)
    convert = lambda file: peer.convert_ldm_vae_checkpoint(file, model.config)
    fixture.add("vae", model, config, VAE_NAMES, prefix, convert)
    # The linears of its attention are 1x1 convolutions.
    for name, shape in fixture.original.items():
        if "attn_1" in name and len(shape) == 2:
            shape.extend([1, 1])


def sd1():
    fixture = Fixture("StableDiffusionPipeline")
    unet(fixture, SD1)
    vae(fixture, VAE, "first_stage_model.")
    prefix = "cond_stage_model.transformer."
    fixture.add("text_encoder", *clip(CLIP), CLIP_NAMES, prefix, peer.convert_ldm_clip_checkpoint)
    unread = {"betas": [3], prefix + "text_model.embeddings.position_ids": [1, 5], "model_ema.decay": [1]}
    fixture.original.update(unread)
    fixture.tokenizers("tokenizer")
    return fixture


def sd2():
    fixture = Fixture("StableDiffusionPipeline")
    unet(fixture, SD2)
    prefix, (model, config) = "cond_stage_model.model.", clip(CLIP)
    convert = lambda file: peer.convert_open_clip_checkpoint(model, file, prefix)
    fixture.add("text_encoder", model, config, OPEN_CLIP_NAMES, prefix, convert)
    # The file has a projection and a last layer that diffusers' model lacks.
    whole, _ = clip(CLIP, projected=True, num_hidden_layers=2, projection_dim=8)
    fixture.original.update(original(whole, OPEN_CLIP_NAMES, prefix))
    fixture.original[prefix + "logit_scale"] = [1]
    fixture.tokenizers("tokenizer")
    return fixture


def sdxl():
    fixture = Fixture("StableDiffusionXLPipeline")
    unet(fixture, SDXL)
    prefix = "conditioner.embedders.0.transformer."
    fixture.add("text_encoder", *clip(CLIP), CLIP_NAMES, prefix, peer.convert_ldm_clip_checkpoint)
    prefix, (model, config) = "conditioner.embedders.1.model.", clip(CLIP, projected=True)
    convert = lambda file: peer.convert_open_clip_checkpoint(model, file, prefix)
    fixture.add("text_encoder_2", model, config, OPEN_CLIP_NAMES, prefix, convert)
    fixture.tokenizers("tokenizer", "tokenizer_2")
    return fixture


def sd3():
    fixture = Fixture("StableDiffusion3Pipeline")
    prefix, model = "model.diffusion_model.", SD3Transformer2DModel(**SD3)
    convert = lambda file: peer.convert_sd3_transformer_checkpoint_to_diffusers(below(file, "model."))
    fixture.add("transformer", model, SD3, MMDIT_NAMES, prefix, convert)

    def clip_l(file):
        converted = peer.convert_ldm_clip_checkpoint(file, "text_encoders.clip_l.transformer.")
        typed = converted["text_model.final_layer_norm.weight"]
        # As create_diffusers_clip_model_from_ldm, whose model then has one type.
        return {**converted, "text_projection.weight": torch.eye(8, dtype=typed.dtype)}

    prefix = "text_encoders.clip_l.transformer."
    fixture.add("text_encoder", *clip(CLIP, projected=True, projection_dim=8), CLIP_NAMES, prefix, clip_l)
    del fixture.original[prefix + "text_projection.weight"]
    prefix = "text_encoders.clip_g.transformer."
    convert = lambda file: peer.convert_ldm_clip_checkpoint(file, "text_encoders.clip_g.transformer.")
    fixture.add("text_encoder_2", *clip(CLIP, projected=True), CLIP_NAMES, prefix, convert)
    model = T5EncoderModel(T5Config(**T5))
    prefix = "text_encoders.t5xxl.transformer."
    fixture.add("text_encoder_3", model, T5, [], prefix, peer.convert_sd3_t5_checkpoint_to_diffusers)
    fixture.tokenizers("tokenizer", "tokenizer_2")
    fixture.list("tokenizer_3", "T5Tokenizer")
    fixture.folder["tokenizer_3/tokenizer_config.json"] = {}
    fixture.list("scheduler", "FlowMatchEulerDiscreteScheduler")
    fixture.folder["scheduler/scheduler_config.json"] = {"shift": 3.0}
    return fixture


def flux():
    fixture = Fixture("FluxPipeline")
    convert = lambda file: flux_of(8)(below(file, ""))
    fixture.add("transformer", FluxTransformer2DModel(**FLUX), FLUX, FLUX_NAMES, "", convert)
    vae(fixture, {**VAE, "use_quant_conv": False, "use_post_quant_conv": False}, "vae.")
    fixture.tokenizers("tokenizer")
    fixture.folder["text_encoder/config.json"] = {"architectures": ["CLIPTextModel"], **CLIP}
    fixture.folder["text_encoder_2/config.json"] = {"architectures": ["T5EncoderModel"], **T5}
    fixture.folder["tokenizer_2/tokenizer_config.json"] = {}
    for component, class_name in [
        ("text_encoder", "CLIPTextModel"), ("text_encoder_2", "T5EncoderModel"), ("tokenizer_2", "T5Tokenizer"),
        ("scheduler", "FlowMatchEulerDiscreteScheduler"),
    ]:  # fmt: skip
        fixture.list(component, class_name)
    fixture.folder["scheduler/scheduler_config.json"] = {"shift": 3.0}
    return fixture


def main():
    default = Path(__file__).parents[1] / "tests/goldens/single_file"
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    out.mkdir(exist_ok=True)
    for fixture in [sd1, sd2, sdxl, sd3, flux]:
        fixture().write(out / f"{fixture.__name__}.json")


if __name__ == "__main__":
    main()
