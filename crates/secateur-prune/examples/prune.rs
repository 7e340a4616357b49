//! The main job as a library: prune a model, save it, and say what it cost each layer.
//!
//! `cargo run --release -p secateur-prune --example prune -- models/emoji-mmdit pruned`

use secateur_models::{ModelFolder, OutputFolder, Pipeline, Sampling};
use secateur_prune::{Calibration, Obs, Packages, Pattern, Plan, Selection, Source, Weighting, prune};
use std::path::Path;

fn main() -> Result<(), secateur_prune::Error> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, model, out] = arguments.as_slice() else {
        return Err(secateur_prune::Error::Request("usage: prune MODEL OUT".into()));
    };
    let folder = ModelFolder::open(Path::new(model), None)?;
    let prompts = vec!["red apple, noto style emoji".into(), "spider, fluent 3d style emoji".into()];
    let sampling = Sampling { steps: 10, guidance: 4.0, seed: 0, batch: 2 };
    let calibration = Calibration { prompts, sampling, weighting: Weighting::LogDecrease };
    let plan = Plan::new(&folder.structure(), &Selection::default(), Packages::Count(1), &Obs)?;
    let output = OutputFolder::create(Path::new(out), false, &[folder.path()])?;

    let mut pipeline = Pipeline::open(folder)?;
    let pattern = Pattern::unstructured(0.5)?;
    let outcome = prune(&mut pipeline, &plan, &Obs, pattern, &Source::Calibration(&calibration), &())?;
    pipeline.folder().write(output.path(), &outcome.weights)?;
    output.finish()?;

    let worst = outcome.layers.iter().max_by(|a, b| a.error.total_cmp(&b.error));
    worst.inspect(|layer| println!("{} layers; the worst, {}: {:.4}", outcome.layers.len(), layer.name, layer.error));
    Ok(())
}
