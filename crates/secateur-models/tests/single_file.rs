//! Single files against what diffusers makes of them (`tools/make_single_file_fixtures.py`): every
//! tensor, exactly.

#[path = "common/single_file.rs"]
mod fixture;

use candle_core::{DType, Device, Tensor};
use fixture::{Fixture, Tensors, save};
use secateur_models::{Conversion, ModelFolder, Observer, SingleFile};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts tensors.
#[derive(Default)]
struct Count(AtomicUsize);

impl Observer for Count {
    fn advance(&self, amount: usize) -> secateur_models::Result<()> {
        self.0.fetch_add(amount, Ordering::Relaxed);
        Ok(())
    }
}

/// The model folder that is made of these tensors.
fn converted(fixture: &Fixture, tensors: &Tensors, folder: &Path) -> PathBuf {
    let (file, like, out) =
        (folder.join("file.safetensors"), folder.join("like"), folder.join("out"));
    save(tensors, &file);
    fixture.write_folder(&like);
    std::fs::create_dir(&out).unwrap();
    let conversion = Conversion::plan(SingleFile::open(&file).unwrap(), &like).unwrap();
    let count = Count::default();
    conversion.write(&out, &count).unwrap();
    let written = |component: &str| {
        let stem = if component.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
        let path = out.join(component).join(format!("{stem}.safetensors"));
        candle_core::safetensors::load(path, &Device::Cpu).unwrap().len()
    };
    let written: usize = conversion.converted().map(written).sum();
    assert_eq!((conversion.tensors(), count.0.into_inner()), (written, written));
    out
}

#[test]
fn every_kind_becomes_what_diffusers_makes_of_it() {
    for (kind, name) in [
        ("sd1", "Stable Diffusion 1 or 2"),
        ("sd2", "Stable Diffusion 1 or 2"),
        ("sdxl", "Stable Diffusion XL"),
        ("sd3", "Stable Diffusion 3"),
        ("flux", "FLUX"),
    ] {
        let temporary = tempfile::tempdir().unwrap();
        let fixture = Fixture::open(kind);
        let out = converted(&fixture, &fixture.tensors(), temporary.path());
        fixture.compare(&out);
        assert_eq!(
            SingleFile::open(&temporary.path().join("file.safetensors")).unwrap().kind(),
            name
        );
        ModelFolder::open(&out, None).unwrap();
    }
}

#[test]
fn other_prefixes_are_known() {
    for (kind, here, there) in [
        ("sd1", "cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."),
        ("sd3", "model.diffusion_model.", ""),
        ("flux", "", "model.diffusion_model."),
        ("flux", "vae.", "first_stage_model."),
    ] {
        let temporary = tempfile::tempdir().unwrap();
        let fixture = Fixture::open(kind);
        let renamed = |name: String| match name.strip_prefix(here) {
            Some(_) if here.is_empty() && name.starts_with("vae.") => name,
            Some(rest) => format!("{there}{rest}"),
            None => name,
        };
        let tensors =
            fixture.tensors().into_iter().map(|(name, tensor)| (renamed(name), tensor)).collect();
        fixture.compare(&converted(&fixture, &tensors, temporary.path()));
    }
}

/// Each a kind, a part of names, and what older or newer files have in its place.
#[test]
fn other_names_of_tensors_are_known() {
    for (kind, here, there) in [
        ("sd1", ".attn_1.q.", ".attn_1.to_q."),
        ("sd1", ".attn_1.k.", ".attn_1.to_k."),
        ("sd1", ".attn_1.v.", ".attn_1.to_v."),
        ("sd1", ".attn_1.proj_out.", ".attn_1.to_out.0."),
        ("flux", "_norm.scale", "_norm.weight"),
        ("sd3", "t5xxl.transformer.shared.", "t5xxl.transformer.encoder.embed_tokens."),
    ] {
        let temporary = tempfile::tempdir().unwrap();
        let fixture = Fixture::open(kind);
        let tensors = fixture.tensors();
        let tied = |name: &str| name.contains(".encoder.embed_tokens.");
        let renamed: Tensors = tensors
            .into_iter()
            .filter(|(name, _)| !tied(name))
            .map(|(name, tensor)| (name.replace(here, there), tensor))
            .collect();
        assert!(renamed.keys().any(|name| name.contains(there)), "{kind}: {there}");
        fixture.compare(&converted(&fixture, &renamed, temporary.path()));
    }
}

/// Each a kind, a tensor that nothing reads, and what is said of it, if it is not known to be no
/// weight.
#[test]
fn tensors_that_nothing_reads() {
    let v_prediction = Some("v_pred makes prediction_type of the scheduler \"v_prediction\"");
    for (kind, name, said) in [
        ("sd1", "model_ema.decay", None),
        (
            "sd1",
            "first_stage_model.loss.logvar",
            Some("tensor first_stage_model.loss.logvar is not read"),
        ),
        ("sd1", "control_model.input_blocks.0.0.weight", Some("is not read")),
        ("sd1", "model.diffusion_model.model.diffusion_model.out.2.bias", Some("is not read")),
        (
            "sdxl",
            "cond_stage_model.transformer.text_model.text_model.final_layer_norm.bias",
            Some("is not read"),
        ),
        ("sdxl", "v_pred", v_prediction),
        ("sdxl", "ztsnr", Some("ztsnr makes rescale_betas_zero_snr of the scheduler true")),
        ("sd3", "v_pred", None),
        ("flux", "lora_unet.alpha", Some("is not read")),
    ] {
        let temporary = tempfile::tempdir().unwrap();
        let fixture = Fixture::open(kind);
        let mut tensors = fixture.tensors();
        tensors.insert(name.into(), Tensor::zeros(0, DType::I64, &Device::Cpu).unwrap());
        let out = converted(&fixture, &tensors, temporary.path());
        fixture.compare(&out);
        let file = SingleFile::open(&temporary.path().join("file.safetensors")).unwrap();
        let warnings: Vec<String> =
            Conversion::plan(file, &temporary.path().join("like")).unwrap().warnings().collect();
        match said {
            Some(words) => {
                assert!(warnings.len() == 1 && warnings[0].contains(words), "{name}: {warnings:?}")
            }
            None => assert!(warnings.is_empty(), "{name}: {warnings:?}"),
        }
        let scheduler = |folder: &Path| {
            std::fs::read_to_string(folder.join("scheduler/scheduler_config.json")).unwrap()
        };
        let (before, after) = (scheduler(&temporary.path().join("like")), scheduler(&out));
        let mut expected: serde_json::Value = serde_json::from_str(&before).unwrap();
        match (kind, name) {
            ("sdxl", "v_pred") => expected["prediction_type"] = "v_prediction".into(),
            ("sdxl", "ztsnr") => expected["rescale_betas_zero_snr"] = true.into(),
            _ => assert_eq!(before, after, "{name}"),
        }
        assert_eq!(serde_json::from_str::<serde_json::Value>(&after).unwrap(), expected, "{name}");
    }
}

#[test]
fn a_projection_that_is_there_is_kept() {
    let temporary = tempfile::tempdir().unwrap();
    let fixture = Fixture::open("sd3");
    let mut tensors = fixture.tensors();
    let prefix = "text_encoders.clip_l.transformer";
    let weight =
        tensors[&format!("{prefix}.text_model.encoder.layers.0.self_attn.q_proj.weight")].clone();
    tensors.insert(format!("{prefix}.text_projection.weight"), weight.clone());
    let out = converted(&fixture, &tensors, temporary.path());
    let path = out.join("text_encoder/model.safetensors");
    let written = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(values(&written["text_projection.weight"]), values(&weight));
}
