//! Prompts are encoded once, and the text encoders go.

#[path = "common/copy.rs"]
mod copy;

use copy::copy_folder;
use secateur_models::{ModelFolder, Pipeline, Sampling};
use std::path::{Path, PathBuf};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name)
}

fn texts(prompts: &[&str]) -> Vec<String> {
    prompts.iter().map(|prompt| (*prompt).to_owned()).collect()
}

#[test]
fn encoded_prompts_need_no_encoder() {
    let temporary = tempfile::tempdir().unwrap();
    copy_folder(&model("emoji-unet"), temporary.path());
    let folder = ModelFolder::open(temporary.path(), None).unwrap();
    let sampling = Sampling { batch: 2, guidance: 3.0, ..folder.sampling() };
    let prompts = texts(&["red apple", "dog", "red apple", "house"]);
    let pipeline = Pipeline::open(folder.clone()).unwrap();
    let before = pipeline.guided_conditioning(&prompts, sampling.latent, &sampling).unwrap();
    let before = before.text().unwrap().to_vec3::<f32>().unwrap();
    // Four of what guidance leads away from, and four prompts, two of them the same.
    assert_eq!(before.len(), 8);
    assert!(before[4] == before[6] && before[4] != before[5] && before[0] == before[3]);

    let pipeline = Pipeline::encoded(folder, &prompts, &sampling, &()).unwrap();
    let whole = |prompts: &[String], sampling: &Sampling| {
        pipeline.guided_conditioning(prompts, sampling.latent, sampling)
    };
    std::fs::remove_dir_all(temporary.path().join("text_encoder")).unwrap();
    let after = whole(&prompts, &sampling).unwrap().text().unwrap().to_vec3::<f32>().unwrap();
    assert_eq!(before, after);
    // In another order, one by one.
    for (index, prompt) in prompts.iter().enumerate() {
        let one = whole(std::slice::from_ref(prompt), &sampling)
            .unwrap()
            .text()
            .unwrap()
            .to_vec3::<f32>()
            .unwrap();
        assert_eq!(one, [before[0].clone(), before[4 + index].clone()]);
    }
    // Another prompt, or another negative prompt, wants the encoder again.
    assert!(whole(&texts(&["cat"]), &sampling).is_err());
    let other = Sampling { negative_prompt: "ugly".into(), ..sampling.clone() };
    assert!(whole(&prompts, &other).is_err());
}

#[test]
fn a_prompt_is_encoded_alike_in_every_batch() {
    for name in ["emoji-unet", "emoji-mmdit"] {
        let folder = ModelFolder::open(&model(name), None).unwrap();
        let sampling = Sampling { guidance: 1.0, ..folder.sampling() };
        let prompts = texts(&["red apple", "dog", "a house with a very long garden", "", "x"]);
        let of = |prompts: &[String]| {
            let pipeline = Pipeline::open(folder.clone()).unwrap();
            let conditioning = pipeline.conditioning(prompts, sampling.latent, &sampling).unwrap();
            conditioning.text().unwrap().to_vec3::<f32>().unwrap()
        };
        let together = of(&prompts);
        for (prompt, wanted) in prompts.iter().zip(&together) {
            assert_eq!(&of(std::slice::from_ref(prompt))[0], wanted, "{name}: {prompt:?}");
        }
    }
}
