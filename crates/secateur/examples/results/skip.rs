//! What is learned to be skipped, against fewer steps and plain rules, at the same
//! multiply-accumulates.

use crate::cell::{path, read, write};
use crate::sheet;
use crate::table::spread;
use anyhow::{Context as _, Result};
use secateur_eval::WayReport;
use secateur_models::{
    ClipModel, ModelFolder, Pipeline, ReuseSchedule, Sampler, Sampling, UnitKind,
};
use secateur_skip::{
    Learned, Learning, Loss, Point, Progress, Scores, Search, compare, learn, ways,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// How many times fewer multiply-accumulates.
const RATES: [u32; 3] = [2, 3, 4];
/// The rate that is learned for; the others come from the same scores.
const LEARNED: u32 = 3;
/// Prompts that are learned from, in batches, and pictures that are judged.
const SAMPLES: usize = 32;
const BATCH: usize = 4;
const JUDGED: usize = 64;
/// Exchanges that are tried.
const EXCHANGES: usize = 200;

/// What is run.
#[derive(Clone, Copy)]
pub(crate) struct SkipStudy {
    pub(crate) steps: Option<usize>,
    pub(crate) sampler: Option<Sampler>,
    pub(crate) units: UnitKind,
    pub(crate) iterations: usize,
}

/// What an optimisation came to.
#[derive(Serialize, Deserialize)]
struct Optimised {
    scores: Scores,
    history: Vec<Point>,
    seconds: f64,
}

/// All ways of a seed at a rate.
#[derive(Serialize, Deserialize)]
struct Cell {
    ways: Vec<WayReport>,
    /// PSNR of some of the pictures that were learned from, of what was tried.
    tried: Vec<(String, f64)>,
    /// What is kept, a digit a unit, 1 where it is computed.
    schedule: Vec<String>,
}

impl SkipStudy {
    /// Makes the cells that are missing; an optimisation that was stopped goes on.
    pub(crate) fn fill(&self, model: &Path, out: &Path, seeds: u64) -> Result<()> {
        std::fs::create_dir_all(out)?;
        for seed in 0..seeds {
            let missing =
                RATES.iter().filter(|rate| !path(out, seed, &format!("{rate}x")).exists());
            let missing: Vec<u32> = missing.copied().collect();
            if !missing.is_empty() {
                self.fill_seed(model, out, seed, &missing)?;
            }
        }
        Ok(())
    }

    fn fill_seed(&self, model: &Path, out: &Path, seed: u64, rates: &[u32]) -> Result<()> {
        let folder = ModelFolder::open(model, None)?;
        let clip = folder.manifest().clip.clone().context("the model names no CLIP")?;
        let clip = ClipModel::open(&model.join(clip), folder.placement())?;
        let prompts =
            folder.prompts(|prompts| &prompts.calibration)?.context("no calibration prompts")?;
        let judged = folder.prompts(|prompts| &prompts.held_out)?.context("no held-out prompts")?;
        let own = folder.sampling();
        let (steps, sampler) =
            (self.steps.unwrap_or(own.steps), self.sampler.unwrap_or(own.sampler));
        let sampling = Sampling { seed, batch: BATCH, steps, sampler, ..own };
        // Labels may come again, with other noise.
        let some = |list: Vec<String>, first: usize, count: usize| {
            list.iter().cycle().skip(first).take(count).cloned().collect::<Vec<_>>()
        };
        let learning = |rate: u32| Learning {
            prompts: some(prompts.clone(), seed as usize * SAMPLES, SAMPLES),
            sampling: sampling.clone(),
            loss: Loss::Ssim,
            iterations: self.iterations,
            keep: 1.0 / f64::from(rate),
        };
        let whole = folder.whole_reuse(&sampling, self.units)?;
        let pipeline = Pipeline::open(folder)?;
        let to_learn = Search::new(&pipeline, &whole, &learning(LEARNED), None, &())?.to_learn();
        let optimised = self.optimise(&pipeline, &to_learn, &learning(LEARNED), out)?;
        let judging = Sampling { seed: seed + 1000, ..sampling.clone() };
        for &rate in rates {
            println!("seed {seed}: {rate} times fewer");
            let learning = learning(rate);
            let tried = Search::new(&pipeline, &whole, &learning, None, &())?
                .select(Some(&optimised.scores), EXCHANGES)?;
            let tried = tried.schedules;
            let ways = ways(&pipeline, &tried, &whole, &learning, &())?;
            let judged = some(judged.clone(), 0, JUDGED);
            let compared =
                compare(&pipeline, ("whole", &judging), &ways, &judged, Some(&clip), &())?;
            if let Some(kept) = compared.first() {
                let pictures = |of: fn(&secateur_eval::PicturePair) -> &secateur_eval::Picture| {
                    kept.pictures.iter().map(of).cloned().collect::<Vec<_>>()
                };
                sheet::save(&pictures(|pair| &pair.reference), out, seed, "dense")?;
                sheet::save(&pictures(|pair| &pair.candidate), out, seed, &format!("{rate}x"))?;
            }
            let digits = |row: &Vec<bool>| {
                row.iter().map(|&computed| if computed { '1' } else { '0' }).collect()
            };
            let cell = Cell {
                ways: compared.into_iter().map(|compared| compared.report).collect(),
                tried: tried.iter().map(|tried| (tried.to_string(), tried.psnr)).collect(),
                schedule: tried
                    .first()
                    .map_or(Vec::new(), |kept| kept.schedule.computed.iter().map(digits).collect()),
            };
            write(&path(out, seed, &format!("{rate}x")), &cell)?;
        }
        Ok(())
    }

    fn optimise(
        &self,
        pipeline: &Pipeline,
        whole: &ReuseSchedule,
        learning: &Learning,
        out: &Path,
    ) -> Result<Optimised> {
        let seed = learning.sampling.seed;
        let path = path(out, seed, "learned");
        if let Some(optimised) = read(&path)? {
            return Ok(optimised);
        }
        println!("seed {seed}: learn");
        let start = Instant::now();
        let folder = out.join(format!("seed{seed}-unfinished"));
        std::fs::create_dir_all(&folder)?;
        let progress = Progress { folder, request: format!("{learning:?}") };
        let Learned { scores, history, .. } =
            learn(pipeline, whole, learning, Some(&progress), &())?;
        let optimised = Optimised { scores, history, seconds: start.elapsed().as_secs_f64() };
        write(&path, &optimised)?;
        if progress.folder.exists() {
            std::fs::remove_dir_all(&progress.folder)?;
        }
        Ok(optimised)
    }
}

/// What a way is called in the rows of all seeds.
fn role(index: usize, name: &str) -> String {
    if index == 0 {
        return "what skip keeps".into();
    }
    let name = name.split(": ").next().unwrap_or(name);
    match name.split_once(", order") {
        Some((name, _)) => format!("{name}, forecast"),
        None => name.to_owned(),
    }
}

/// Prints the table of the cells that there are.
pub(crate) fn print(out: &Path, seeds: u64) -> Result<()> {
    println!(
        "| | seeds | MACs kept, % | times faster | time saved / MACs saved | PSNR dB | SSIM | \
         text-image score | top-1 |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for rate in RATES {
        let mut order = Vec::<String>::new();
        let mut rows = BTreeMap::<String, Vec<WayReport>>::new();
        for seed in 0..seeds {
            let Some(cell) = read::<Cell>(&path(out, seed, &format!("{rate}x")))? else { continue };
            for (index, way) in cell.ways.into_iter().enumerate() {
                let role = role(index, &way.name);
                if !order.contains(&role) {
                    order.push(role.clone());
                }
                rows.entry(role).or_default().push(way);
            }
        }
        for role in order {
            let ways = &rows[&role];
            let column = |value: fn(&WayReport) -> Option<f64>, digits: usize| {
                spread(&ways.iter().filter_map(value).collect::<Vec<f64>>(), digits, false)
            };
            let columns = [
                column(|way| Some(100.0 * way.kept), 1)?,
                column(|way| way.speed_up, 2)?,
                column(
                    |way| way.speed_up.map(|faster| (1.0 - 1.0 / faster) / (1.0 - way.kept)),
                    2,
                )?,
                column(|way| Some(way.psnr), 2)?,
                column(|way| Some(way.ssim), 3)?,
                column(|way| way.score, 3)?,
                column(|way| way.top1, 3)?,
            ];
            println!("| {rate}x, {role} | {} | {} |", ways.len(), columns.join(" | "));
        }
    }
    Ok(())
}
