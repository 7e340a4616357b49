//! The table of docs/results.md: every method at every sparsity, over several seeds.
//!
//! `cargo run --release --example results -- models/emoji-mmdit results/emoji-mmdit --seeds 3`
//!
//! A seed sets the calibration prompts, their noise, and the noise of the judged pictures. Each cell is a JSON file in
//! the output folder; a run that was stopped goes on with the cells that are missing, and
//! `results --table results/emoji-mmdit` prints what there is.

#![expect(clippy::print_stdout, reason = "it prints a table")]

use anyhow::{Context, Result, bail};
use secateur_eval::{Comparison, Samples, Summary};
use secateur_models::{ClipModel, ModelFolder, OutputFolder, Pipeline, Sampling, Subject};
use secateur_prune::{
    Calibration, Fingerprint, Magnitude, Method, Obs, Packages, Pattern, Plan, SavedStatistics, Selection, Source,
    Task, Wanda, Weighting, prune,
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const METHODS: [&dyn Method; 3] = [&Obs, &Wanda, &Magnitude];
const PATTERNS: [&str; 4] = ["0.5", "0.6", "0.7", "2:4"];
const CALIBRATION: usize = 100;
const JUDGED: usize = 64;

#[derive(Serialize, Deserialize)]
struct Cell {
    comparison: Comparison,
    mean_layer_error: f64,
    largest_layer_error: f64,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, out, seeds) = match arguments.as_slice() {
        [flag, out] if flag == "--table" => return print_table(Path::new(out), 100),
        [model, out] => (model, out, 1),
        [model, out, flag, seeds] if flag == "--seeds" => (model, out, seeds.parse()?),
        _ => bail!("usage: results MODEL OUT [--seeds N], or results --table OUT"),
    };
    let (model, out) = (Path::new(model), Path::new(out));
    std::fs::create_dir_all(out)?;
    // The first pattern over all seeds comes first: it is the one whose spread matters most.
    for patterns in [&PATTERNS[..1], &PATTERNS[1..]] {
        for seed in 0..seeds {
            let missing =
                |pattern: &&str| METHODS.iter().any(|method| !cell_path(out, seed, *method, pattern).exists());
            if patterns.iter().any(missing) {
                Study::new(model, out, seed)?.fill(patterns)?;
            }
        }
    }
    print_table(out, seeds)
}

fn cell_path(out: &Path, seed: u64, method: &dyn Method, pattern: &str) -> PathBuf {
    out.join(format!("seed{seed}-{}-{}.json", method.name(), pattern.replace(':', "of")))
}

/// All cells of one seed.
struct Study<'a> {
    model: &'a Path,
    out: &'a Path,
    seed: u64,
    clip: ClipModel,
    prompts: Vec<String>,
    calibration: Calibration,
}

impl<'a> Study<'a> {
    fn new(model: &'a Path, out: &'a Path, seed: u64) -> Result<Self> {
        let folder = ModelFolder::open(model, None)?;
        let manifest = folder.manifest();
        let clip = ClipModel::open(&model.join(manifest.clip.as_ref().context("the model names no CLIP")?))?;
        let list = folder.prompts(|prompts| &prompts.calibration)?.context("no calibration prompts")?;
        let held_out = folder.prompts(|prompts| &prompts.held_out)?.context("no held-out prompts")?;
        // A label may come again, with other noise; a text may not.
        let times = if folder.subject() == Subject::Label { usize::MAX } else { 1 };
        let some = |list: Vec<String>, first: usize, count: usize| {
            let all = std::iter::repeat_n(list, times).flatten();
            all.skip(first).take(count).collect::<Vec<_>>()
        };
        let chosen = some(list, seed as usize * CALIBRATION, CALIBRATION);
        if chosen.len() < CALIBRATION {
            bail!("too few calibration prompts for seed {seed}");
        }
        let sampling = Sampling { seed, ..folder.sampling() };
        let calibration = Calibration { prompts: chosen, sampling, weighting: Weighting::default(), token_stride: 1 };
        Ok(Self { model, out, seed, clip, prompts: some(held_out, 0, JUDGED), calibration })
    }

    fn samples(&self, pipeline: &Pipeline, name: &str) -> Result<Samples> {
        let sampling = Sampling { seed: self.seed + 1000, ..self.calibration.sampling.clone() };
        Ok(Samples::generate(pipeline, name, &self.prompts, &sampling, Some(&self.clip), &())?)
    }

    /// Makes the cells that are missing.
    fn fill(&self, patterns: &[&str]) -> Result<()> {
        let open = || ModelFolder::open(self.model, None);
        let folder = open()?;
        let structure = folder.structure(&self.calibration.sampling);
        let plan = |task: &Task<'_>| Plan::new(&structure, &Selection::default(), Packages::Count(1), task);
        let fingerprint = Fingerprint::new(&folder, &self.calibration)?;
        let path = self.out.join(format!("seed{}-statistics", self.seed));
        if !path.exists() {
            println!("seed {}: calibrate", self.seed);
            let source = Source::Calibration(&self.calibration);
            let task = Task::Weights { method: &Magnitude, pattern: Pattern::unstructured(0.5)? };
            let outcome = prune(&mut Pipeline::open(open()?)?, &plan(&task)?, &task, &source, None, &())?;
            let output = OutputFolder::create(&path, false, &[])?;
            SavedStatistics::write(output.path(), &outcome.statistics, &fingerprint)?;
            output.finish()?;
        }
        let statistics = SavedStatistics::open(&path, &fingerprint)?;
        println!("seed {}: dense", self.seed);
        let dense = self.samples(&Pipeline::open(open()?)?, "dense")?;
        for &text in patterns {
            let pattern = if text.contains(':') { text.parse()? } else { Pattern::unstructured(text.parse()?)? };
            for method in METHODS {
                let path = cell_path(self.out, self.seed, method, text);
                if path.exists() {
                    continue;
                }
                println!("seed {}: {} {pattern}", self.seed, method.name());
                let mut pipeline = Pipeline::open(open()?)?;
                let task = Task::Weights { method, pattern };
                let outcome = prune(&mut pipeline, &plan(&task)?, &task, &Source::Saved(&statistics), None, &())?;
                let (comparison, _) = dense.compare(&self.samples(&pipeline, method.name())?)?;
                let errors = Summary::of(&outcome.layers.iter().map(|layer| layer.error).collect::<Vec<_>>())?;
                let cell = Cell { comparison, mean_layer_error: errors.mean, largest_layer_error: errors.maximum };
                let partial = path.with_extension("partial");
                std::fs::write(&partial, serde_json::to_string_pretty(&cell)?)?;
                std::fs::rename(partial, path)?;
            }
        }
        Ok(())
    }
}

/// Mean over the seeds, and their sample standard deviation where there are several.
fn spread(values: &[f64], digits: usize) -> Result<String> {
    let summary = Summary::of(values)?;
    let mean = format!("{:.digits$}", summary.mean);
    Ok(if values.len() > 1 { format!("{mean} ± {:.digits$}", summary.standard_deviation) } else { mean })
}

fn print_table(out: &Path, seeds: u64) -> Result<()> {
    let read = |seed, method, pattern| -> Result<Cell> {
        Ok(serde_json::from_str(&std::fs::read_to_string(cell_path(out, seed, method, pattern))?)?)
    };
    let text = |cell: &Cell| cell.comparison.text_image.clone().context("no text-image score");
    for (row, pattern) in PATTERNS.into_iter().enumerate() {
        for method in METHODS {
            // A run that was stopped has cells of fewer seeds.
            let done = (0..seeds).filter(|seed| cell_path(out, *seed, method, pattern).exists());
            let cells = done.map(|seed| read(seed, method, pattern)).collect::<Result<Vec<_>>>()?;
            if cells.is_empty() {
                continue;
            }
            let texts = cells.iter().map(text).collect::<Result<Vec<_>>>()?;
            let of =
                |value: &dyn Fn(&Cell) -> f64, digits| spread(&cells.iter().map(value).collect::<Vec<_>>(), digits);
            if row == 0 && method.name() == METHODS[0].name() {
                let scores = texts.iter().map(|text| text.score_reference.mean).collect::<Vec<_>>();
                let top = texts.iter().map(|text| text.top1_reference).collect::<Vec<_>>();
                let (count, scores, top) = (cells.len(), spread(&scores, 3)?, spread(&top, 3)?);
                let choices = texts[0].choices;
                println!(
                    "| | seeds | PSNR dB | SSIM | text-image score | top-1 of {choices} | mean / largest layer error |"
                );
                println!("|---|---|---|---|---|---|---|");
                println!("| dense | {count} | - | - | {scores} | {top} | - |");
            }
            let name = match pattern.parse::<f64>() {
                Ok(share) => format!("{:.0} %", share * 100.0),
                Err(_) => pattern.to_owned(),
            };
            let scores = texts.iter().map(|text| text.score_candidate.mean).collect::<Vec<_>>();
            let top = texts.iter().map(|text| text.top1_candidate).collect::<Vec<_>>();
            println!(
                "| {} {name} | {} | {} | {} | {} | {} | {} / {} |",
                method.name(),
                cells.len(),
                of(&|cell| cell.comparison.psnr.mean, 2)?,
                of(&|cell| cell.comparison.ssim.mean, 3)?,
                spread(&scores, 3)?,
                spread(&top, 3)?,
                of(&|cell| cell.mean_layer_error, 4)?,
                of(&|cell| cell.largest_layer_error, 3)?,
            );
        }
    }
    Ok(())
}
