//! What model folders of others say in their own words. Each kind of deviation is a table: a new
//! member is a line.

#![cfg(unix)]

#[path = "common/assemble.rs"]
mod assemble;
#[path = "common/copy.rs"]
mod copy;

use assemble::assemble;
use copy::copy_folder;
use safetensors::tensor::{Dtype, TensorView};
use secateur_models::{
    ClipImageProcessor, ClipModel, ClipTextConfig, ClipTokenizer, ModelFolder, Pipeline, Result,
    Sampler, T5Config, T5Tokenizer, autoencoder_config, denoiser_config,
};
use secateur_nn::Placement;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// What is read of a folder.
#[derive(Clone, Copy)]
enum Part {
    Denoiser,
    Vae,
    Clip,
    T5,
    WholeClip,
    ClipWords,
    T5Words,
    Processor,
}

use Part::{Clip, ClipWords, Denoiser, Processor, T5, T5Words, Vae, WholeClip};

impl Part {
    /// A folder that has it, and the file that describes it.
    fn fixture(self) -> (&'static str, &'static str) {
        match self {
            Denoiser => ("models/emoji-unet/unet", "config.json"),
            Vae => ("models/emoji-unet/vae", "config.json"),
            Clip => ("models/emoji-unet/text_encoder", "config.json"),
            T5 => ("tests/goldens/t5_encoder", "config.json"),
            WholeClip => ("models/emoji-clip", "config.json"),
            ClipWords => ("models/emoji-unet/tokenizer", "tokenizer_config.json"),
            T5Words => ("tests/goldens/t5_tokenizer", "tokenizer_config.json"),
            Processor => ("models/emoji-clip", "preprocessor_config.json"),
        }
    }

    /// What it comes to, spelled out.
    fn open(self, folder: &Path) -> Result<String> {
        let path = folder.join(self.fixture().1);
        Ok(match self {
            Denoiser => format!("{:?}", denoiser_config(&path)?),
            Vae => format!("{:?}", autoencoder_config(&path)?),
            Clip => format!("{:?}", ClipTextConfig::open(&path)?),
            T5 => format!("{:?}", T5Config::open(&path)?),
            WholeClip => ClipModel::open(folder, &Placement::cpu())?.name().to_owned(),
            ClipWords => format!("{:?}", ClipTokenizer::open(folder)?.encode("a red apple")?),
            T5Words => {
                format!("{:?}", T5Tokenizer::open(folder)?.encode_batch(&["apple".into()], 8)?)
            }
            Processor => format!("{:?}", ClipImageProcessor::open(&path)?),
        })
    }
}

/// A copy of a folder, without links.
fn copied(source: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(source, folder.path());
    folder
}

/// Sets an option of a JSON file.
fn set(path: &Path, option: &str, value: Value) {
    let mut fields: Map<String, Value> =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    fields.insert(option.into(), value);
    std::fs::write(path, Value::Object(fields).to_string()).unwrap();
}

/// Options that have another value than the one supported, or are not known, are errors by name.
#[test]
fn options_that_may_change_results_are_refused() {
    let quantized = || json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    let rows: Vec<(Part, &str, Value, &str)> = vec![
        (Denoiser, "quantization_config", quantized(), "is not known"),
        (Vae, "quantization_config", quantized(), "is not known"),
        (Clip, "quantization_config", quantized(), "is not known"),
        (T5, "quantization_config", quantized(), "is not known"),
        (WholeClip, "quantization_config", quantized(), "is not known"),
        (Denoiser, "class_embed_type", json!("timestep"), "null is"),
        (Denoiser, "mid_block_type", Value::Null, "\"UNetMidBlock2DCrossAttn\" is"),
        (Denoiser, "act_fn", json!("gelu"), "\"silu\" is"),
        (Denoiser, "only_cross_attention", json!([false, true, false]), "false is"),
        (Denoiser, "of_a_later_version", json!(1), "is not known"),
        (Vae, "latents_std", json!([1.0]), "null is"),
        (Vae, "act_fn", json!("relu"), "\"silu\" is"),
        (Vae, "up_block_types", json!(vec!["AttnUpDecoderBlock2D"; 3]), "\"UpDecoderBlock2D\" is"),
        (Clip, "use_attention_mask", json!(true), "false is"),
        (Clip, "hidden_act", json!("mish"), "quick_gelu are"),
        (Clip, "is_decoder", json!(true), "is not known"),
        (Clip, "pruned_heads", json!({"0": [1]}), "is not known"),
        (T5, "dense_act_fn", json!("mish"), "gelu_new and quick_gelu are"),
        (T5, "is_decoder", json!(true), "is not known"),
        (ClipWords, "padding_side", json!("left"), "\"right\" is"),
        (ClipWords, "truncation_side", json!("left"), "\"right\" is"),
        (ClipWords, "split_special_tokens", json!(true), "false is"),
        (T5Words, "sp_model_kwargs", json!({"enable_sampling": true}), "{} is"),
        (Processor, "do_center_crop", json!(false), "true is"),
        (Processor, "resample", json!(2), "3 is"),
        (Processor, "rescale_factor", json!(0.5), "is"),
        (Processor, "do_pad", json!(true), "is not known"),
        // Of a type that no option has: said in words of the file.
        (Denoiser, "sample_size", json!("large"), "neither a whole number nor a list"),
        (Denoiser, "attention_head_dim", json!({"a": 1}), "neither a whole number nor a list"),
        (Processor, "size", json!({"longest_edge": 5}), "neither a number, nor shortest_edge"),
    ];
    for (part, option, value, words) in rows {
        let (folder, file) = part.fixture();
        let folder = copied(&project().join(folder));
        set(&folder.path().join(file), option, value.clone());
        let error = part.open(folder.path()).expect_err(option).to_string();
        let shown = [option, words, file].iter().all(|part| error.contains(part))
            && !error.contains("untagged");
        assert!(shown, "{option} {value}: {error}");
    }
}

/// Values that mean what the file said before, and options that change nothing.
#[test]
fn values_of_one_meaning_are_one() {
    let rows: Vec<(Part, &str, Value)> = vec![
        (Denoiser, "act_fn", json!("swish")),
        (Denoiser, "act_fn", json!("SiLU")),
        (Denoiser, "use_linear_projection", Value::Null),
        (Denoiser, "use_linear_projection", json!([false, false, false])),
        (Denoiser, "only_cross_attention", json!([false, false, false])),
        (Denoiser, "only_cross_attention", Value::Null),
        (Denoiser, "mid_block_only_cross_attention", json!(false)),
        (Denoiser, "resnet_skip_time_act", Value::Null),
        (Denoiser, "mid_block_scale_factor", json!(1.0)),
        (Denoiser, "norm_num_groups", json!([16, 16, 16])),
        (Denoiser, "norm_num_groups", json!(16.0)),
        (Denoiser, "layers_per_block", json!([1, 1, 1])),
        (Denoiser, "attention_head_dim", json!([4, 4, 4])),
        (Denoiser, "cross_attention_dim", json!([192, 192, 192])),
        (Denoiser, "downsample_padding", json!([1, 1])),
        (Denoiser, "sample_size", json!([16, 16])),
        (Denoiser, "downsample_padding", Value::Null),
        (Denoiser, "freq_shift", Value::Null),
        (Denoiser, "norm_eps", Value::Null),
        (Denoiser, "dropout", json!(0.1)),
        (Denoiser, "upcast_attention", json!(true)),
        (Denoiser, "quantization_config", Value::Null),
        (Denoiser, "_commit", json!("abc")),
        (Vae, "act_fn", json!("swish")),
        (Vae, "force_upcast", json!(false)),
        (Vae, "sample_size", json!([512, 512])),
        (Vae, "use_quant_conv", Value::Null),
        (Vae, "latents_mean", json!([])),
        (Clip, "architectures", Value::Null),
        (Clip, "architectures", json!(["CLIPModel"])),
        (Clip, "torch_dtype", json!("float16")),
        (Clip, "pruned_heads", json!({})),
        (Clip, "use_attention_mask", Value::Null),
        (Clip, "layer_norm_eps", Value::Null),
        (T5, "architectures", json!(["T5ForConditionalGeneration"])),
        (T5, "is_encoder_decoder", json!(true)),
        (T5, "task_specific_params", json!({"summarization": {"num_beams": 4}})),
        (ClipWords, "padding_side", json!("right")),
        (ClipWords, "do_lower_case", json!(false)),
        (T5Words, "sp_model_kwargs", json!({})),
        (Processor, "size", json!(64)),
        (Processor, "size", json!({"height": 64, "width": 64})),
        (Processor, "crop_size", json!(64)),
        (Processor, "do_pad", Value::Null),
    ];
    for (part, option, value) in rows {
        let (folder, file) = part.fixture();
        let folder = copied(&project().join(folder));
        let before = part.open(folder.path()).unwrap();
        set(&folder.path().join(file), option, value.clone());
        assert_eq!(part.open(folder.path()).unwrap(), before, "{option} {value}");
    }
}

/// What T5's activation is called does not matter, but for what it is.
#[test]
fn activations_of_t5() {
    let folder = copied(&project().join("tests/goldens/t5_encoder"));
    let path = folder.path().join("config.json");
    for (proj, dense, opens) in [
        ("gated-gelu", Value::Null, true),
        ("gated-gelu", json!("gelu_new"), true),
        ("gated-silu", Value::Null, true),
        ("relu", Value::Null, true),
        ("gated-gelu", json!("mish"), false),
    ] {
        set(&path, "feed_forward_proj", json!(proj));
        set(&path, "dense_act_fn", dense.clone());
        assert_eq!(T5Config::open(&path).is_ok(), opens, "{proj} {dense}");
    }
}

/// Gives a tensor of a file another name.
fn rename_tensor(path: &Path, old: &str, new: &str) {
    let bytes = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    tensors.tensor(old).unwrap();
    let renamed = |name: String| if name == old { new.to_owned() } else { name };
    let all = tensors.tensors().into_iter().map(|(name, tensor)| (renamed(name), tensor));
    std::fs::write(path, safetensors::serialize(all, None).unwrap()).unwrap();
}

/// Adds a tensor without meaning to a file.
fn add_tensor(path: &Path, name: &str, dtype: Dtype, shape: &[usize]) {
    let bytes = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let zeros = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
    let more = TensorView::new(dtype, shape.to_vec(), &zeros).unwrap();
    let all = tensors.tensors().into_iter().chain([(name.to_owned(), more)]);
    std::fs::write(path, safetensors::serialize(all, None).unwrap()).unwrap();
}

/// The picture of a folder, as bits.
fn picture(folder: &Path) -> Vec<u32> {
    let pipeline = Pipeline::open(ModelFolder::open(folder, None).unwrap()).unwrap();
    let mut sampling = pipeline.folder().sampling();
    sampling.steps = 2;
    pipeline.folder().check(&sampling).unwrap();
    let latents = pipeline.sample(&["red apple".into()], 0..1, &sampling, None, &()).unwrap();
    let picture =
        pipeline.pictures(&latents).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    picture.into_iter().map(f32::to_bits).collect()
}

enum Change {
    /// An option of a file.
    Option(&'static str, &'static str, Value),
    /// Another name of a tensor of a file.
    Name(&'static str, &'static str, &'static str),
    /// A tensor more in a file.
    Tensor(&'static str, &'static str, Dtype, &'static [usize]),
}

/// Where parts of a model come from changes no picture. Each with the words of the one warning, if
/// there is one.
#[test]
fn provenance_changes_no_picture() {
    use Change::{Name, Option, Tensor};
    const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
    const ENCODER: &str = "text_encoder/model.safetensors";
    let rows = [
        (
            "stable_diffusion_2",
            Option("text_encoder/config.json", "architectures", json!(["CLIPModel"])),
            "",
        ),
        (
            "stable_diffusion_2",
            Option("text_encoder/config.json", "architectures", Value::Null),
            "",
        ),
        (
            "stable_diffusion_2",
            Option(
                "text_encoder/config.json",
                "architectures",
                json!(["CLIPTextModelWithProjection"]),
            ),
            "",
        ),
        (
            "stable_diffusion_3",
            Option("text_encoder/config.json", "architectures", json!(["CLIPTextModel"])),
            "",
        ),
        (
            "pixart",
            Option(
                "text_encoder/config.json",
                "architectures",
                json!(["T5ForConditionalGeneration"]),
            ),
            "",
        ),
        (
            "pixart",
            Option("transformer/config.json", "_class_name", json!("Transformer2DModel")),
            "",
        ),
        ("stable_diffusion_2", Option("unet/config.json", "_class_name", json!("UNet2DModel")), ""),
        (
            "stable_diffusion_2",
            Option("vae/config.json", "_class_name", json!("AutoencoderTiny")),
            "",
        ),
        ("stable_diffusion_2", Option("vae/config.json", "_class_name", Value::Null), ""),
        // The pipeline of Stable Diffusion does not know of a shift.
        ("stable_diffusion_2", Option("vae/config.json", "shift_factor", json!(0.5)), ""),
        ("stable_diffusion_xl", Option("vae/config.json", "shift_factor", json!(0.5)), ""),
        ("pixart", Option("vae/config.json", "shift_factor", json!(0.5)), ""),
        (
            "stable_diffusion_2",
            Tensor(UNET, "ema.conv_in.weight", Dtype::F32, &[2]),
            "unet: tensor ema.conv_in.weight",
        ),
        (
            "stable_diffusion_2",
            Tensor(UNET, "dummy", Dtype::F32, &[0]),
            "unet: tensor dummy is not read",
        ),
        (
            "stable_diffusion_2",
            Tensor(UNET, "scale", Dtype::F8_E4M3, &[3]),
            "unet: tensor scale is not read",
        ),
        (
            "stable_diffusion_2",
            Tensor(ENCODER, "embeddings.position_ids", Dtype::I32, &[1, 32]),
            "",
        ),
        (
            "stable_diffusion_2",
            Tensor(ENCODER, "mask", Dtype::BOOL, &[4]),
            "text_encoder: tensor mask is not read",
        ),
        (
            "stable_diffusion_2",
            Tensor("vae/diffusion_pytorch_model.safetensors", "loss.logvar", Dtype::F64, &[]),
            "vae: tensor loss.logvar is not read",
        ),
        ("pixart", Name(ENCODER, "shared.weight", "encoder.embed_tokens.weight"), ""),
        (
            "stable_diffusion_2",
            Name(
                "vae/diffusion_pytorch_model.safetensors",
                "decoder.mid_block.attentions.0.to_q.weight",
                "decoder.mid_block.attentions.0.query.weight",
            ),
            "",
        ),
        (
            "pixart",
            Tensor(ENCODER, "lm_head.weight", Dtype::F16, &[4, 4]),
            "tensor lm_head.weight is not read",
        ),
    ];
    for (pipeline, change, words) in rows {
        let folder = copied(assemble(&project().join("tests/goldens"), pipeline).path());
        let before = picture(folder.path());
        let what = match change {
            Option(file, option, value) => {
                set(&folder.path().join(file), option, value.clone());
                format!("{pipeline}: {option} {value}")
            }
            Name(file, old, new) => {
                rename_tensor(&folder.path().join(file), old, new);
                format!("{pipeline}: {new}")
            }
            Tensor(file, name, dtype, shape) => {
                add_tensor(&folder.path().join(file), name, dtype, shape);
                format!("{pipeline}: {name}")
            }
        };
        assert!(picture(folder.path()) == before, "{what}");
        let warnings = ModelFolder::open(folder.path(), None).unwrap().warnings();
        assert_eq!(warnings.len(), usize::from(!words.is_empty()), "{what}: {warnings:?}");
        assert!(warnings.iter().all(|warning| warning.contains(words)), "{what}: {warnings:?}");
    }
}

/// A shift counts where the pipeline knows of it: latents / scale + shift.
#[test]
fn a_shift_of_sd3_changes_the_picture() {
    let folder = copied(assemble(&project().join("tests/goldens"), "stable_diffusion_3").path());
    let before = picture(folder.path());
    set(&folder.path().join("vae/config.json"), "shift_factor", json!(0.5));
    assert!(picture(folder.path()) != before);
}

/// Sides of the latents, by the version of diffusers that wrote the UNet's configuration, and its
/// `sample_size`: what `StableDiffusionPipeline` of diffusers 0.42 makes of them.
#[test]
fn sizes_of_older_versions() {
    for (pipeline, version, size, side) in [
        ("StableDiffusionPipeline", json!("0.6.0"), json!(16), 64),
        ("StableDiffusionPipeline", json!("0.8.1"), json!(32), 64),
        ("StableDiffusionPipeline", json!("0.0.4"), json!(63), 64),
        ("StableDiffusionPipeline", json!("0.6.0"), json!(96), 96),
        ("StableDiffusionPipeline", json!("0.6.0"), json!([16, 16]), 16),
        ("StableDiffusionPipeline", json!("0.9.0.dev0"), json!(16), 16),
        ("StableDiffusionPipeline", json!("0.10.2"), json!(16), 16),
        ("StableDiffusionPipeline", json!("1.0.0"), json!(16), 16),
        ("StableDiffusionPipeline", Value::Null, json!(16), 16),
        // Not given: diffusers wants a height and a width.
        ("StableDiffusionPipeline", json!("0.42.1"), Value::Null, 64),
    ] {
        let folder = copied(&project().join("models/emoji-unet"));
        set(&folder.path().join("model_index.json"), "_class_name", json!(pipeline));
        set(&folder.path().join("unet/config.json"), "_diffusers_version", version.clone());
        set(&folder.path().join("unet/config.json"), "sample_size", size.clone());
        let model = ModelFolder::open(folder.path(), None).unwrap();
        assert_eq!(model.sampling().latent, (side, side), "{version}, {size}");
        assert_eq!(model.warnings().len(), usize::from(size.is_null()), "{version}, {size}");
    }
}

/// What a command does not use does not stop it: the folder opens, and only sampling says what is
/// wrong. Each with a sampler that does without, if there is one.
#[test]
fn what_is_not_used_is_not_checked() {
    let unknown = json!(["diffusers", "LCMScheduler"]);
    let ddim = Some(Sampler::Ddim);
    let rows = [
        (
            "model_index.json",
            "scheduler",
            unknown,
            "LCMScheduler is not supported; the samplers ddim (DDIM",
            ddim,
        ),
        (
            "scheduler/scheduler_config.json",
            "thresholding",
            json!("x"),
            "thresholding",
            Some(Sampler::Euler),
        ),
        ("vae/config.json", "block_out_channels", json!([]), "block_out_channels", None),
        (
            "vae/config.json",
            "latents_mean",
            json!([1.0]),
            "latents_mean [1.0] is not supported; null is",
            None,
        ),
        ("text_encoder/config.json", "hidden_size", json!("x"), "hidden_size", None),
        (
            "text_encoder/config.json",
            "use_attention_mask",
            json!(true),
            "use_attention_mask true",
            None,
        ),
        ("tokenizer/tokenizer_config.json", "padding_side", json!("left"), "padding_side", None),
    ];
    for (file, option, value, words, instead) in rows {
        let folder =
            copied(assemble(&project().join("tests/goldens"), "stable_diffusion_2").path());
        if file.starts_with("tokenizer") && !folder.path().join(file).is_file() {
            std::fs::write(folder.path().join(file), "{}").unwrap();
        }
        set(&folder.path().join(file), option, value);
        let model = ModelFolder::open(folder.path(), None).expect(option);
        let check = |sampler: Option<Sampler>| {
            let sampler = sampler.map_or_else(|| model.sampler(), Ok)?;
            model.check(&secateur_models::Sampling { sampler, ..model.sampling() })
        };
        let error = check(None).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        if instead.is_some() {
            check(instead).expect(option);
        }
    }
}

/// Each tokenizer has its own length, and that of T5 may be 0: then nothing reads its tokens.
#[test]
fn what_is_not_read_of_long_prompts_is_told() {
    let folder = assemble(&project().join("tests/goldens"), "stable_diffusion_3");
    let model = ModelFolder::open(folder.path(), None).unwrap();
    let long = |word: &str| [word; 100].join(" ");
    let prompts = ["red apple".to_owned(), long("apple"), long("spider")];
    let lines = |max_sequence_length: usize, prompts: &[String]| {
        let sampling = secateur_models::Sampling { max_sequence_length, ..model.sampling() };
        model.cuts(prompts, &sampling).unwrap()
    };
    assert!(lines(16, &prompts[..1]).is_empty());
    let told = |words: &str, tokens: usize, tokenizer: &str, more: &str| {
        format!(
            "of prompt 2 {words:?} is not read: it is beyond the {tokens} tokens of \
             {tokenizer}{more}"
        )
    };
    let words = [&long("apple")[..60], "..."].concat();
    let clip = |more: &str| ["tokenizer", "tokenizer_2"].map(|name| told(&words, 32, name, more));
    assert_eq!(lines(0, &prompts), clip(", and 1 more are too long"));
    // Its tokens are parts of words.
    let words = [&long("apple")[3..63], "..."].concat();
    let t5 = told(&words, 16, "tokenizer_3", "");
    assert_eq!(lines(16, &prompts[..2]), [clip("").as_slice(), &[t5]].concat());
}
