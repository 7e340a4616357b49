//! `secateur generate`.

use super::prompts::held_out_prompts;
use super::request::{check_memory, command_line, skipping};
use crate::args::{Common, GenerateArgs};
use crate::format::{print, print_json, table};
use crate::profile::{Profile, Share};
use crate::progress::{Progress, warn};
use crate::usage::usage;
use anyhow::Result;
use secateur_eval::{Stage, split};
use secateur_models::files::shown;
use secateur_models::{Observer, Pipeline, Subject};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Serialize)]
struct Generated {
    command: String,
    model: PathBuf,
    images: Vec<Image>,
    sampler: String,
    steps: usize,
    guidance: f64,
    seed: u64,
    seconds: f64,
    images_per_second: f64,
    stages: Vec<Stage>,
    peak_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    operations: Option<Vec<Share>>,
}

#[derive(Serialize)]
struct Image {
    file: PathBuf,
    prompt: String,
}

pub(crate) fn run(args: &GenerateArgs, common: &Common) -> Result<()> {
    let folder = args.model.open()?;
    let sampling = skipping(&args.sampling.sampling(&folder)?, &folder, args.skipping.adapt)?;
    let prompts = match (args.prompt.as_slice(), &args.prompts, args.samples) {
        ([_, ..], ..) if folder.subject() == Subject::Nothing => {
            usage!("this model takes no prompts: give --samples N")
        }
        (prompts @ [_, ..], _, count) => {
            prompts.iter().take(count.unwrap_or(usize::MAX)).cloned().collect()
        }
        ([], Some(file), count) => {
            held_out_prompts(Some(file), &folder, count.unwrap_or(usize::MAX))?
        }
        ([], None, count) => held_out_prompts(None, &folder, count.unwrap_or(8))?,
    };
    if let Some(count) = args.samples.filter(|count| *count > prompts.len()) {
        warn(&format!(
            "--samples {count}, and there are {} prompts: one picture of each",
            prompts.len()
        ));
    }
    folder.check_pictures()?;
    check_memory(&folder, &sampling, sampling.batch.min(prompts.len()))?;
    let progress = Progress::new(common.quiet);
    folder.cuts(&prompts, &sampling)?.iter().for_each(|line| progress.warn(line));
    let inputs: Vec<&Path> =
        std::iter::once(folder.path()).chain(args.prompts.as_deref()).collect();
    let output = common.output(&args.out, &inputs)?;
    progress.begin("load", 0, "");
    let model = folder.path().to_owned();
    let pipeline = Pipeline::open(folder)?;
    pipeline.encode(&prompts, &sampling, &progress)?;
    let profile = args.profile.then(Profile::start);

    progress.begin("generate", prompts.len() * sampling.steps, "image steps");
    let start = Instant::now();
    let mut images = Vec::new();
    for batch in sampling.batches(prompts.len()) {
        let latents = pipeline.sample(&prompts, batch, &sampling, None, &progress)?;
        for picture in split(&pipeline.pictures(&latents)?)? {
            let name = format!("{:04}.png", images.len());
            picture.save_png(output.path().join(&name))?;
            images.push(Image { file: args.out.join(name), prompt: prompts[images.len()].clone() });
        }
    }
    let time = start.elapsed();
    let (stages, peak_bytes) = progress.finish();
    output.finish()?;
    let operations = profile.map(|profile| profile.shares(time));
    let seconds = time.as_secs_f64();
    if common.json {
        return print_json(&Generated {
            command: command_line(),
            model,
            sampler: sampling.sampler.to_string(),
            steps: sampling.steps,
            guidance: sampling.guidance,
            seed: sampling.seed,
            seconds,
            images_per_second: images.len() as f64 / seconds,
            images,
            stages,
            peak_bytes,
            operations,
        });
    }
    if let Some(shares) = operations {
        let row = |share: &Share| {
            vec![
                share.operation.to_owned(),
                format!("{:.2} s", share.seconds),
                format!("{:.1} %", share.share * 100.0),
            ]
        };
        print(&table(
            &["operation", "time", "share"],
            &shares.iter().map(row).collect::<Vec<_>>(),
        ))?;
    }
    print(&format!("{} images in {seconds:.1} s: {}", images.len(), shown(&args.out)))
}
