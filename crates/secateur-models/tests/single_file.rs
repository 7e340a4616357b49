//! Single files against what diffusers makes of them (`tools/make_single_file_fixtures.py`): every tensor, exactly.

#[path = "common/single_file.rs"]
mod fixture;

use candle_core::{DType, Device, Tensor};
use fixture::{Fixture, Tensors, save};
use secateur_models::{ModelFolder, SingleFile};
use std::path::{Path, PathBuf};

/// The model folder that is made of these tensors.
fn converted(fixture: &Fixture, tensors: &Tensors, folder: &Path) -> PathBuf {
    let (file, like, out) = (folder.join("file.safetensors"), folder.join("like"), folder.join("out"));
    save(tensors, &file);
    fixture.write_folder(&like);
    std::fs::create_dir(&out).unwrap();
    SingleFile::open(&file).unwrap().conversion(&like).unwrap().write(&out, &()).unwrap();
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
        assert_eq!(SingleFile::open(&temporary.path().join("file.safetensors")).unwrap().kind(), name);
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
        let tensors = fixture.tensors().into_iter().map(|(name, tensor)| (renamed(name), tensor)).collect();
        fixture.compare(&converted(&fixture, &tensors, temporary.path()));
    }
}

#[test]
fn a_projection_that_is_there_is_kept() {
    let temporary = tempfile::tempdir().unwrap();
    let fixture = Fixture::open("sd3");
    let mut tensors = fixture.tensors();
    let prefix = "text_encoders.clip_l.transformer";
    let weight = tensors[&format!("{prefix}.text_model.encoder.layers.0.self_attn.q_proj.weight")].clone();
    tensors.insert(format!("{prefix}.text_projection.weight"), weight.clone());
    let out = converted(&fixture, &tensors, temporary.path());
    let path = out.join("text_encoder/model.safetensors");
    let written = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(values(&written["text_projection.weight"]), values(&weight));
}
