//! What it costs to watch a model's activations: the steps of a calibration of `prune --structured`
//! or `slim` over the same steps with nobody watching, and over their floor. The ways take turns at
//! every step, so that a phase of the machine hits all alike.
//!
//! `cargo run --release --example calibration -- models/emoji-mmdit`

#![expect(clippy::print_stdout, reason = "it prints a table")]

#[path = "../src/machine.rs"]
mod machine;

use anyhow::{Context, Result};
use clap::Parser;
use machine::Product;
use secateur_eval::Spread;
use secateur_models::{Denoising, ModelFolder, Pipeline};
use secateur_nn::Probe;
use secateur_prune::{Calibrator, Obs, Packages, Plan, Portion, Selection, Slim, Task, Weighting};
use std::path::PathBuf;
use std::time::Instant;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Time the steps of a calibration
#[derive(Parser)]
struct Arguments {
    /// Model folder
    model: PathBuf,
    /// Batches of pictures
    #[arg(long, default_value_t = 4)]
    batches: usize,
    /// Watch what `slim` watches
    #[arg(long)]
    slim: bool,
}

const STRIDES: [usize; 2] = [4, 1];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // Within the thread pool, as the binary's commands.
    rayon::scope(|_| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let pipeline = Pipeline::open(ModelFolder::open(&arguments.model, None)?)?;
    let folder = pipeline.folder();
    let sampling = folder.sampling();
    let prompts =
        folder.prompts(|prompts| &prompts.calibration)?.context("no calibration prompts")?;
    let task = match arguments.slim {
        true => Task::Structured { method: &Slim::default(), portion: Portion::slim(0.3)? },
        false => Task::Structured { method: &Obs, portion: Portion::new(0.3)? },
    };
    let plan =
        Plan::new(&folder.structure(&sampling), &Selection::default(), Packages::Count(1), &task)?;
    let package = plan.packages.first().context("nothing to remove")?;
    let weights =
        Weighting::default().weights(sampling.steps).context("weights that have to be measured")?;
    let calibrators = STRIDES.map(|stride| Calibrator::new(package, weights.clone(), stride));
    let probes = [None, Some(&calibrators[0] as &dyn Probe), Some(&calibrators[1])];

    let mut product = Product::new(folder.placement())?;
    let mut seconds: [Vec<f64>; 3] = Default::default();
    for batch in 0..arguments.batches {
        let images = batch * sampling.batch..(batch + 1) * sampling.batch;
        let noise = pipeline.noise(images.clone(), &sampling)?;
        let told = prompts.get(images.clone()).context("too few calibration prompts")?;
        let conditioning = pipeline.guided_conditioning(told, sampling.latent, &sampling)?;
        let begin = |probe| {
            Denoising::new(&pipeline, &noise, &conditioning, images.clone(), &sampling, probe)
        };
        let mut ways = probes.map(begin).into_iter().collect::<Result<Vec<_>, _>>()?;
        for step in 0..sampling.steps {
            product.measure()?;
            // Each goes first as often as the others.
            for way in (step..step + 3).map(|turn| turn % 3) {
                let start = Instant::now();
                ways[way].step()?;
                seconds[way].push(start.elapsed().as_secs_f64());
            }
        }
    }

    let rate = product.rate();
    let computed = folder.computed_structure(&sampling);
    let samples = (folder.passes(sampling.guidance) * sampling.batch) as f64;
    println!("{}; {}", arguments.model.display(), product.text());
    println!(
        "| tokens | over forwards alone | over forwards alone and Hessians at the machine's rate \
         |\n|---|---|---|"
    );
    for (stride, watched) in STRIDES.iter().zip(&seconds[1..]) {
        let operations = 2.0 * samples * plan.hessian_macs(&computed) as f64 / *stride as f64;
        let ratio = |floor: f64| {
            Spread::of(
                seconds[0].iter().zip(watched).map(|(alone, watched)| watched / (alone + floor)),
            )
        };
        println!(
            "| 1 of {stride} | {} | {} |",
            ratio(0.0).show(1.0, 2),
            ratio(operations / rate.median).show(1.0, 2)
        );
    }
    Ok(())
}
