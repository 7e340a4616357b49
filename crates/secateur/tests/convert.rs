//! `secateur convert` on tiny single files, and what it refuses.

mod common;
#[path = "../../secateur-models/tests/common/single_file.rs"]
mod fixture;

use candle_core::{DType, Device, Tensor};
use common::{entries, fail, model, secateur, succeed};
use fixture::{Fixture, Tensors, save};
use std::path::Path;
use std::process::Command;

fn convert(folder: &Path) -> Command {
    let mut command = secateur();
    command
        .arg("convert")
        .arg(folder.join("file.safetensors"))
        .arg("--like")
        .arg(folder.join("like"));
    command.arg("--out").arg(folder.join("out")).arg("--quiet");
    command
}

/// Writes a fixture's single file and the folder beside it.
fn write(kind: &str, folder: &Path, change: impl FnOnce(&mut Tensors)) {
    let fixture = Fixture::open(kind);
    let mut tensors = fixture.tensors();
    change(&mut tensors);
    save(&tensors, &folder.join("file.safetensors"));
    fixture.write_folder(&folder.join("like"));
}

/// Converts what `change` made of a fixture; the error must hold all of `words`, and nothing be
/// written.
fn refused(kind: &str, change: impl FnOnce(&mut Tensors), words: &[&str]) {
    let temporary = tempfile::tempdir().unwrap();
    write(kind, temporary.path(), change);
    refused_there(temporary.path(), words);
}

fn refused_there(folder: &Path, words: &[&str]) {
    let before = entries(folder);
    let error = fail(&mut convert(folder), 1);
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
    assert_eq!(entries(folder), before, "something was written");
}

fn zeros(shape: &[usize], dtype: DType) -> Tensor {
    Tensor::zeros(shape, dtype, &Device::Cpu).unwrap()
}

#[test]
fn a_folder_is_made_that_other_commands_open() {
    let temporary = tempfile::tempdir().unwrap();
    write("sd2", temporary.path(), |_| {});
    let json: serde_json::Value =
        serde_json::from_str(&succeed(convert(temporary.path()).arg("--json"))).unwrap();
    assert_eq!(json["kind"], "Stable Diffusion 1 or 2");
    assert_eq!(json["converted"], serde_json::json!(["unet", "text_encoder"]));
    assert_eq!(json["copied"], serde_json::json!(["vae"]));
    let (out, like) = (temporary.path().join("out"), temporary.path().join("like"));
    let inspection = succeed(secateur().arg("inspect").arg(&out).args(["--json", "--quiet"]));
    let inspection: serde_json::Value = serde_json::from_str(&inspection).unwrap();
    assert!(inspection["layers"].as_array().unwrap().len() > 50);
    for file in [
        "vae/diffusion_pytorch_model.safetensors",
        "unet/config.json",
        "tokenizer/tokenizer_config.json",
    ] {
        assert_eq!(
            std::fs::read(out.join(file)).unwrap(),
            std::fs::read(like.join(file)).unwrap(),
            "{file}"
        );
    }
    let text = fail(&mut convert(temporary.path()), 1);
    assert!(text.contains("exists already"), "{text}");
    let text = succeed(convert(temporary.path()).arg("--force"));
    assert!(text.contains("unet, text_encoder from") && text.contains("vae from"), "{text}");
    Fixture::open("sd2").compare(&out);
}

#[test]
fn other_commands_say_what_a_file_is() {
    let temporary = tempfile::tempdir().unwrap();
    write("sdxl", temporary.path(), |_| {});
    let file = temporary.path().join("file.safetensors").display().to_string();
    let out = temporary.path().join("out").display().to_string();
    let folder = model("emoji-mmdit").display().to_string();
    for command in [
        vec!["inspect", &file],
        vec!["prune", &file, "--out", &out],
        vec!["generate", &file, "--out", &out],
        vec!["compare", &folder, &file],
        vec!["convert", &file, "--like", &file, "--out", &out],
    ] {
        let error = fail(secateur().args(&command), 1);
        let words = [
            "a Stable Diffusion XL checkpoint in one file",
            "`secateur convert` makes one of it",
            "--like FOLDER",
        ];
        assert!(words.iter().all(|word| error.contains(word)), "{command:?}: {error}");
    }
    for name in ["model.ckpt", "model.pt"] {
        let file = temporary.path().join(name);
        std::fs::write(&file, b"PK\x03\x04 and so on").unwrap();
        let error = fail(secateur().arg("inspect").arg(&file), 1);
        assert!(
            error.contains(name) && error.contains("this is a pickle, which can run code"),
            "{error}"
        );
    }
}

#[test]
fn files_of_no_known_kind() {
    let temporary = tempfile::tempdir().unwrap();
    write("sd1", temporary.path(), |_| {});
    let file = temporary.path().join("file.safetensors");
    std::fs::write(&file, b"\x80\x02}q\x00X and so on").unwrap();
    refused_there(
        temporary.path(),
        &["file.safetensors", "pickle", "convert it to safetensors first"],
    );
    std::fs::write(&file, b"GGUF\x03\0\0\0 and so on").unwrap();
    refused_there(temporary.path(), &["file.safetensors", "GGUF", "quantised"]);
    let lora = |tensors: &mut Tensors| {
        *tensors = [("lora_unet_down.weight".to_owned(), zeros(&[1], DType::F32))].into();
    };
    refused(
        "sd1",
        lora,
        &["1 tensors (lora_unet_down.weight", "not a checkpoint of a kind that is known", "FLUX"],
    );
}

#[test]
fn tensors_that_do_not_fit() {
    const QKV: &str = "model.diffusion_model.joint_blocks.1.context_block.attn.qkv.weight";
    refused(
        "sd3",
        |t| _ = t.remove(QKV),
        &["file.safetensors", "like", &format!("1 missing ({QKV})")],
    );
    let shape = |tensors: &mut Tensors| _ = tensors.insert(QKV.into(), zeros(&[16, 8], DType::F32));
    refused("sd3", shape, &["1 of another shape", QKV, "[16, 8] in the file, [24, 8] wanted"]);
    let renamed = |tensors: &mut Tensors| {
        let tensor = tensors.remove(QKV).unwrap();
        tensors.extend((0..12).map(|index| (format!("joint_blocks.{index}.qkv"), tensor.clone())));
    };
    refused(
        "sd3",
        renamed,
        &["1 missing", "12 unexpected (joint_blocks.0.qkv, joint_blocks.1.qkv", ", ...)"],
    );
    let bytes = |tensors: &mut Tensors| _ = tensors.insert(QKV.into(), zeros(&[24, 8], DType::U8));
    refused(
        "sd3",
        bytes,
        &["file.safetensors", QKV, "is U8; weights of F32, F16 and BF16 are supported"],
    );
    let eight_bits =
        |tensors: &mut Tensors| _ = tensors.insert(QKV.into(), zeros(&[24, 8], DType::F8E4M3));
    refused("sd3", eight_bits, &[QKV, "is F8_E4M3"]);
}

#[test]
fn folders_that_do_not_fit() {
    let temporary = tempfile::tempdir().unwrap();
    let like = temporary.path().join("like");
    write("sd1", temporary.path(), |_| {});
    std::fs::remove_dir_all(like.join("tokenizer")).unwrap();
    refused_there(temporary.path(), &["like", "tokenizer", "its folder is missing"]);

    std::fs::remove_dir_all(&like).unwrap();
    Fixture::open("sdxl").write_folder(&like);
    let words = [
        "like: a StableDiffusionXLPipeline",
        "is Stable Diffusion 1 or 2",
        "a folder of StableDiffusionPipeline",
    ];
    refused_there(temporary.path(), &words);

    let temporary = tempfile::tempdir().unwrap();
    let like = temporary.path().join("like");
    write("sd2", temporary.path(), |_| {});
    std::fs::remove_file(like.join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    refused_there(
        temporary.path(),
        &["like/vae", "no diffusion_pytorch_model.safetensors here", "holds no vae"],
    );

    let temporary = tempfile::tempdir().unwrap();
    let index = temporary.path().join("like/model_index.json");
    write("sd3", temporary.path(), |_| {});
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, text.replace(r#"["diffusers","T5EncoderModel"]"#, "[null,null]"))
        .unwrap();
    refused_there(
        temporary.path(),
        &["like: has no text_encoder_3", "(text_encoders.t5xxl.transformer.*)"],
    );
}

#[test]
fn a_folder_of_a_model_that_lacks_heads_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    write("sd2", temporary.path(), |_| {});
    let manifest = r#"{"format_version": 2, "compressed": {"removals": {"a": {"of": 4,
        "removed": [1]}}, "shapes": {}}}"#;
    std::fs::write(temporary.path().join("like/secateur.json"), manifest).unwrap();
    refused_there(temporary.path(), &["like", "lacks heads"]);
}
