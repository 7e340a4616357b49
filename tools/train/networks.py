"""The configurations of the bundled models."""

from pathlib import Path

from diffusers import (
    AutoencoderKL,
    DiTTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

TOKENIZER = Path(__file__).resolve().parent / "tokenizer"
MAX_LENGTH = 32


def tokenizer():
    """The tokenizer that make_tokenizer.py wrote."""
    return CLIPTokenizer.from_pretrained(TOKENIZER)


def token_ids(tok, texts):
    """Texts as ids, padded and cut to MAX_LENGTH."""
    padded = {"padding": "max_length", "max_length": MAX_LENGTH, "truncation": True}
    return tok(texts, return_tensors="pt", **padded).input_ids


def special_tokens(tok):
    """The special ids that a CLIP text configuration names."""
    return {
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
    }


def vae():
    """64 x 64 pictures to 8 x 16 x 16 latents."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        sample_size=64,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=16,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def text_encoder(tok, hidden, heads, activation, projection=None):
    """A four-layer CLIP text encoder, with a projection of the pooled text if its size is given."""
    config = CLIPTextConfig(
        vocab_size=len(tok),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=4,
        num_attention_heads=heads,
        max_position_embeddings=MAX_LENGTH,
        hidden_act=activation,
        projection_dim=projection or hidden,
        **special_tokens(tok),
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def clip(tok):
    """The text-image model that scores pictures."""
    text = dict(
        vocab_size=len(tok),
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=128,
        **special_tokens(tok),
    )
    vision = dict(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=8,
        image_size=64,
        patch_size=8,
        projection_dim=128,
    )
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def mmdit():
    """The denoiser of emoji-mmdit."""
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=8,
        attention_head_dim=32,
        num_attention_heads=8,
        joint_attention_dim=256,
        caption_projection_dim=256,
        pooled_projection_dim=256,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )


def unet():
    """The denoiser of emoji-unet."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=192,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def dit():
    """The denoiser of emoji-dit."""
    return DiTTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=8,
        attention_head_dim=32,
        num_attention_heads=6,
        num_embeds_ada_norm=1000,
        norm_num_groups=32,
    )
