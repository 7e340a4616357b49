//! The real binary on models that take labels or nothing, on other samplers and sizes, and on files
//! without weights.

#![cfg(unix)]

#[path = "../../secateur-models/tests/common/assemble.rs"]
mod assemble;
mod common;
#[path = "../../secateur-models/tests/common/copy.rs"]
mod copy;

use assemble::assemble;
use common::{entries, fail, model, project, secateur, succeed};
use copy::copy_folder;
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_model_without_prompts_takes_a_number_of_samples() {
    let folder = assemble(&project().join("tests/goldens"), "ddpm");
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("pictures");
    let mut generate = secateur();
    generate
        .arg("generate")
        .arg(folder.path())
        .arg("--out")
        .arg(&out)
        .args(["--steps", "3", "--quiet"]);
    succeed(generate.args(["--samples", "3"]));
    assert_eq!(entries(&out), ["0000.png", "0001.png", "0002.png"]);
    let read = |name: &str| std::fs::read(out.join(name)).unwrap();
    assert_ne!(read("0000.png"), read("0001.png"));
    succeed(
        secateur().arg("bench").arg(folder.path()).args("--steps 3 --repeats 1 --quiet".split(' ')),
    );

    let pruned = temporary.path().join("pruned");
    let prune = |options: &[&str]| {
        let mut prune = secateur();
        prune
            .arg("prune")
            .arg(folder.path())
            .arg("--out")
            .arg(&pruned)
            .args(["--steps", "3", "--quiet", "--json"]);
        prune.args(options);
        prune
    };
    let report = json(&succeed(&mut prune(&["--samples", "4", "--report-samples", "2"])));
    assert_eq!(report["settings"]["calibration prompts"], 4);
    assert_eq!(report["settings"]["sampler"], "ddpm");
    assert_eq!(report["comparison"]["prompts"].as_array().unwrap().len(), 2);
    assert!(report["comparison"]["text_image"].is_null());

    let prompts = temporary.path().join("prompts.txt");
    std::fs::write(&prompts, "a cat\n").unwrap();
    let error = fail(&mut prune(&["--force", "--prompts", prompts.to_str().unwrap()]), 2);
    assert!(error.contains("takes no prompts") && error.contains("--samples"), "{error}");
}

#[test]
fn a_model_that_knows_classes_takes_labels() {
    let temporary = tempfile::tempdir().unwrap();
    let labels = temporary.path().join("labels.txt");
    std::fs::write(&labels, "food/noto\n3\nanimals/twitter\n").unwrap();
    let out = temporary.path().join("pruned");
    let prune = || {
        let mut prune = secateur();
        prune
            .args(["prune", "models/emoji-dit", "--steps", "3", "--quiet", "--json", "--prompts"])
            .arg(&labels);
        prune.args(["--report-samples", "3", "--out"]).arg(&out);
        prune
    };
    let report = json(&succeed(&mut prune()));
    assert_eq!(report["settings"]["calibration prompts"], 3);
    // A class cannot be held out: the pictures of the report are of other noise.
    assert_eq!(report["comparison"]["prompts"].as_array().unwrap().len(), 3);
    assert_eq!(report["comparison"]["text_image"]["choices"], 38);

    std::fs::write(&labels, "food/noto\nfood/wooden\n").unwrap();
    let error = fail(prune().arg("--force"), 2);
    assert!(error.contains("\"food/wooden\" is not a label") && error.contains("38"), "{error}");
    std::fs::write(&labels, "1\n").unwrap();
    let error = fail(prune().args(["--force", "--negative-prompt", "blurred"]), 2);
    assert!(error.contains("negative prompt"), "{error}");
    std::fs::write(&labels, "1001\n").unwrap();
    let error = fail(prune().arg("--force"), 2);
    assert!(error.contains("label 1001") && error.contains("1000 classes"), "{error}");
}

#[test]
fn other_samplers_and_sizes() {
    let temporary = tempfile::tempdir().unwrap();
    let generate = |out: &str, options: &[&str]| {
        let mut generate = secateur();
        generate.args([
            "generate",
            "models/emoji-unet",
            "--prompt",
            "red apple, noto style emoji",
            "--quiet",
            "--json",
        ]);
        generate.args(["--steps", "5", "--out"]).arg(temporary.path().join(out)).args(options);
        generate
    };
    let told = json(&succeed(&mut generate(
        "heun",
        &["--sampler", "heun", "--height", "32", "--width", "48"],
    )));
    assert_eq!(told["sampler"], "heun");
    let picture = image::open(temporary.path().join("heun/0000.png")).unwrap();
    assert_eq!((picture.height(), picture.width()), (32, 48));
    for (options, code, words) in [
        (["--sampler", "lms"], 2, "euler-ancestral"),
        (["--sampler", "flow-match-euler"], 2, "does not go with a model that is sampled by ddim"),
        (["--height", "30"], 2, "--height 30 is not a multiple of 4"),
        (["--height", "40000000"], 2, "must be at most 1000000"),
        (["--height", "400000"], 2, "a height of 400000 pixels"),
        (["--steps", "99999999999"], 2, "must be at most 1000000"),
        (["--steps", "999999"], 2, "999999 steps"),
    ] {
        let error = fail(&mut generate("none", &options), code);
        assert!(error.contains(words), "{error}");
        assert_eq!(entries(temporary.path()), ["heun"]);
    }
}

#[test]
fn the_tree_of_a_model() {
    let folder = assemble(&project().join("tests/goldens"), "flux");
    let tree = succeed(secateur().args(["inspect", "--tree", "--quiet"]).arg(folder.path()));
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    insta::assert_snapshot!(tree.replace(name, "flux"));
    let inspection =
        json(&succeed(secateur().args(["inspect", "--quiet", "--json"]).arg(model("emoji-unet"))));
    assert_eq!(
        inspection["units"][0]["feeds"],
        serde_json::json!(["down_blocks.1", "up_blocks.1", "up_blocks.2"])
    );
    let total: u64 = inspection["blocks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|block| block["macs"].as_u64().unwrap())
        .sum();
    assert_eq!(inspection["macs"], total);
}

/// A valid header over a sparse file is enough to see what a model of full size takes.
#[test]
fn full_size_without_weights() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("sd-1.5");
    copy_folder(&project().join("tools/full_size/sd-1.5"), &folder);
    let component = folder.join("unet");
    let config = secateur_models::denoiser_config(&component.join("config.json")).unwrap();
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, wanted) in config.parameters(&Default::default()).unwrap() {
        let start = end;
        end += 2 * wanted.shape.iter().product::<usize>();
        let entry = serde_json::json!({"dtype": "F16", "shape": wanted.shape,
            "data_offsets": [start,
            end]});
        header.insert(name, entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let path = component.join("diffusion_pytorch_model.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], &header].concat()).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();

    let inspection = json(&succeed(secateur().args(["inspect", "--quiet", "--json"]).arg(&folder)));
    assert_eq!(inspection["parameters"], 859_520_964);
    let prompts = temporary.path().join("prompts.txt");
    std::fs::write(&prompts, "a cat\na dog\n").unwrap();
    let mut prune = secateur();
    prune.args("prune --dry-run --quiet --json --report-samples 0 --steps 10".split(' '));
    // It is planned, and cannot be run.
    let ended = prune.arg(&folder).arg("--prompts").arg(&prompts).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(common::text(&ended.stderr).contains("this cannot be run"));
    let dry = json(&common::text(&ended.stdout));
    // PNDM calls the model once more than it makes steps; guidance doubles it.
    let calls = 2 * 11 * 2;
    assert_eq!(dry["forward_macs"], calls * inspection["macs"].as_u64().unwrap());
}

/// Both models of the report are drawn with the weights that were asked for.
#[test]
fn variants_of_a_recipe() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    copy_folder(&model("emoji-dit"), &at("model"));
    let (plain, half) =
        ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors");
    std::fs::rename(at("model/transformer").join(plain), at("model/transformer").join(half))
        .unwrap();
    let vae = at("model/vae");
    std::fs::copy(vae.join(plain), vae.join(half)).unwrap();
    std::fs::rename(vae.join(plain), vae.join("diffusion_pytorch_model.fp32.safetensors")).unwrap();
    std::fs::write(
        at("recipe.toml"),
        "steps = 2\nsamples = 2\n[[method]]\nname = 'slim'\n[[method]]\nname = 'prune'\n",
    )
    .unwrap();
    let mut command = secateur();
    command
        .arg("compress")
        .arg(at("model"))
        .arg("--recipe")
        .arg(at("recipe.toml"))
        .arg("--out")
        .arg(at("small"));
    succeed(command.args(["--variant", "fp16", "--report-samples", "1", "--quiet"]));
}
