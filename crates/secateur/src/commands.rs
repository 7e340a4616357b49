//! One file a command, and what they share.

mod bench;
mod compare;
mod compress;
mod compression;
mod convert;
mod export;
mod generate;
mod inspect;
mod prompts;
mod prune;
mod skip;
mod slim;
mod told;

use crate::args::{Cli, Command, Common, JobArgs, ModelArgs, SamplingArgs, ScoreArgs};
use crate::format::bytes;
use crate::memory;
use crate::progress::{say, warn};
use crate::usage::{Usage, of_request, usage};
use anyhow::{Context, Result, bail};
use secateur_models::files::shown;
use secateur_models::{ClipModel, ModelFolder, Observer, OutputFolder, OutputOptions, Sampling, Subject, read_prompts};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// No model is sampled with more guidance.
const LARGEST_GUIDANCE: f64 = 65535.0;

/// More threads than this a core only wait for each other.
const THREADS_A_CORE: usize = 4;

/// The model that is used when none is named.
const DEFAULT_MODEL: &str = "models/emoji-mmdit";

pub(crate) fn run(cli: Cli) -> Result<()> {
    let asked = cli.common.threads.map_or_else(num_cpus::get_physical, usize::from);
    let threads = asked.min(THREADS_A_CORE * num_cpus::get());
    if threads < asked {
        warn(&format!("{threads} threads are as many as this machine has use for"));
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    // Within the pool: work handed to it from outside costs a wake-up and a wait at every kernel.
    rayon::scope(|_| match cli.command {
        Command::Prune(args) => prune::run(&args, &cli.common),
        Command::Slim(args) => slim::run(&args, &cli.common),
        Command::Skip(args) => skip::run(&args, &cli.common),
        Command::Compress(args) => compress::run(&args, &cli.common),
        Command::Generate(args) => generate::run(&args, &cli.common),
        Command::Inspect(args) => inspect::run(&args, &cli.common),
        Command::Compare(args) => compare::run(&args, &cli.common),
        Command::Bench(args) => bench::run(&args, &cli.common),
        Command::Convert(args) => convert::run(&args, &cli.common),
        Command::Export(args) => export::run(&args, &cli.common),
    })
}

impl ModelArgs {
    fn open(&self) -> Result<ModelFolder> {
        let default = Path::new(DEFAULT_MODEL);
        let path = match &self.model {
            Some(path) => path,
            None if default.is_dir() => default,
            None => usage!(
                "no MODEL given, and there is no {DEFAULT_MODEL} here: run this in the folder of the repository, which \
                 has it, or name a model folder in the diffusers layout"
            ),
        };
        open_model(path, self.variant.as_deref())
    }
}

/// Opens a model folder, and says what a user should know of it.
fn open_model(path: &Path, variant: Option<&str>) -> Result<ModelFolder> {
    if path.symlink_metadata().is_err()
        && let Some(hint) = meant(path)
    {
        bail!("{}: no such folder{hint}", shown(path));
    }
    let folder = ModelFolder::open(path, variant)?;
    folder.warnings().iter().for_each(|warning| warn(warning));
    Ok(folder)
}

/// What may have been meant by the name of a folder that is not there.
fn meant(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    if ["heads", "neurons"].contains(&name) {
        return Some(format!(": for that option write --structured={name}"));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folders = std::fs::read_dir(parent).ok()?.flatten().filter(|entry| entry.path().is_dir());
    let names = folders.filter_map(|entry| entry.file_name().into_string().ok());
    let alike = |other: &String| strsim::normalized_damerau_levenshtein(name, other);
    let nearest = names.map(|other| (alike(&other), other)).max_by(|one, other| one.0.total_cmp(&other.0));
    let (_, nearest) = nearest.filter(|(alike, _)| *alike > 0.6)?;
    Some(format!(": {} is there", shown(&parent.join(nearest))))
}

impl SamplingArgs {
    fn sampling(&self, folder: &ModelFolder) -> Result<Sampling> {
        let own = folder.sampling();
        let guidance = self.guidance.unwrap_or(own.guidance);
        if !guidance.is_finite() || guidance.abs() > LARGEST_GUIDANCE {
            usage!("guidance {guidance} is not a number to sample with");
        }
        let factor = folder.factor();
        let latents = |side: &str, pixels: Option<usize>, own: usize| match pixels {
            None => Ok::<_, anyhow::Error>(own),
            Some(pixels) if pixels.is_multiple_of(factor) => Ok(pixels / factor),
            Some(pixels) => usage!("--{side} {pixels} is not a multiple of {factor}, the pixels of a latent"),
        };
        let sampling = Sampling {
            steps: self.steps.unwrap_or(own.steps),
            latent: (latents("height", self.height, own.latent.0)?, latents("width", self.width, own.latent.1)?),
            guidance,
            sampler: self.sampler.map_or_else(|| folder.sampler(), Ok)?,
            negative_prompt: self.negative_prompt.clone(),
            seed: self.seed,
            batch: self.batch,
            ..own
        };
        // What it refuses of the request was given here.
        folder.check(&sampling).map_err(of_request)?;
        Ok(sampling)
    }
}

impl Common {
    fn options(&self, resume: bool) -> OutputOptions {
        OutputOptions { replace: self.force, resume, part: self.part, tell: say }
    }

    /// Prepares the folder of an output that no run goes on with.
    fn output(&self, out: &Path, inputs: &[&Path]) -> Result<OutputFolder> {
        Ok(OutputFolder::create(out, self.options(false), inputs)?)
    }

    /// Fails where such a folder cannot be made.
    fn check_output(&self, out: &Path, inputs: &[&Path]) -> Result<()> {
        Ok(OutputFolder::check(out, self.options(false), inputs)?)
    }
}

impl JobArgs {
    /// Prepares the folder of the new model, which also keeps what the run finishes.
    fn output(&self, common: &Common, inputs: &[&Path]) -> Result<OutputFolder> {
        let out = self.out.as_ref().context("--out DIR is needed")?;
        Ok(OutputFolder::create(out, common.options(self.resume), inputs)?)
    }

    /// Fails where the folder of the new model cannot be made, if it is named, or `copied` bytes have no room there.
    fn check_output(&self, common: &Common, inputs: &[&Path], copied: u64) -> Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        OutputFolder::check(out, common.options(self.resume), inputs)?;
        Ok(OutputFolder::check_space(out, copied)?)
    }

    /// The files and folders that are read for a model of `folder`.
    fn inputs(&self, folder: &ModelFolder) -> Vec<PathBuf> {
        let prompts = [&self.prompts.prompts, &self.prompts.report_prompts].into_iter().flatten().cloned();
        prompts.chain(self.score.path(folder)).chain([folder.path().to_owned()]).collect()
    }
}

/// Paths as they are handed on.
fn borrowed(paths: &[PathBuf]) -> Vec<&Path> {
    paths.iter().map(PathBuf::as_path).collect()
}

/// What is said of links in a model folder that are not followed.
fn links_left_out(folder: &ModelFolder) -> Option<String> {
    let links: Vec<String> = folder.links_left_out().map(|link| shown(link).to_string()).collect();
    let first = links.first()?;
    let problem = "not copied: links are followed in one step, to files in the model folder or called as a model's are";
    Some(format!("{}: {first} and {} more links are {problem}", shown(folder.path()), links.len() - 1))
}

/// Refuses images whose activations this machine cannot hold: `images` at a time.
fn check_memory(folder: &ModelFolder, sampling: &Sampling, images: usize) -> Result<()> {
    let needed = folder.memory(sampling, folder.passes(sampling.guidance) * images).activations;
    if let Some(all) = memory::of_machine().filter(|all| needed > *all) {
        let (height, width) = (sampling.latent.0 * folder.factor(), sampling.latent.1 * folder.factor());
        usage!(
            "{images} image(s) at a time of {height} x {width} pixels take {} of activations, and this machine has {} \
             of memory: give a smaller --height, --width or --batch",
            bytes(needed),
            bytes(all)
        );
    }
    Ok(())
}

/// `sampling` with the schedule of what `folder` skips.
fn skipping(sampling: &Sampling, folder: &ModelFolder, adapt: bool) -> Result<Sampling> {
    Ok(Sampling { reuse: folder.reuse(sampling, adapt)?, ..sampling.clone() })
}

impl ScoreArgs {
    /// The CLIP that was asked for, or the model's own, if it is there: beside the model folder, or in `models/` under
    /// the current folder.
    fn path(&self, folder: &ModelFolder) -> Option<PathBuf> {
        if let Some(path) = &self.clip {
            return Some(path.clone());
        }
        let own = folder.manifest().clip.as_ref()?;
        let name = own.file_name().map(PathBuf::from).unwrap_or_default();
        let candidates = [folder.path().join(own), Path::new("models").join(name)];
        candidates.into_iter().find(|path| path.join("config.json").is_file())
    }

    /// Whether pictures of a model are scored at all.
    fn is_used(&self, folder: &ModelFolder) -> bool {
        folder.subject() != Subject::Nothing
    }

    /// SHA-256 of that CLIP, where `pictures` are scored.
    fn digest(&self, folder: &ModelFolder, pictures: usize, observer: &dyn Observer) -> Result<String> {
        let used = self.path(folder).filter(|_| pictures > 0 && self.is_used(folder));
        Ok(used.map_or(Ok(String::new()), |path| ClipModel::digest(&path, observer))?)
    }

    fn open(&self, folder: &ModelFolder) -> Result<Option<ClipModel>> {
        if folder.subject() == Subject::Nothing {
            if self.clip.is_some() {
                usage!("--clip scores pictures against prompts, and {} takes none", shown(folder.path()));
            }
            return Ok(None);
        }
        Ok(self.path(folder).map(|path| ClipModel::open(&path)).transpose()?)
    }
}

/// What a report says where there is no text-image score.
fn no_score(folder: &ModelFolder) -> &'static str {
    match folder.subject() {
        Subject::Nothing => "no text-image score: the model is told nothing that its pictures could fit",
        _ => "no text-image score: the model names no CLIP that is there; --clip DIR gives one",
    }
}

/// Names for folders: their last parts, or their paths where any of those are the same.
fn names(folders: &[&Path]) -> Vec<String> {
    let last = |path: &&Path| {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        shown(path.file_name().map_or(&*path, Path::new)).to_string()
    };
    let names: Vec<String> = folders.iter().map(last).collect();
    match names.iter().collect::<BTreeSet<_>>().len() == names.len() {
        true => names,
        false => folders.iter().map(|path| shown(path).to_string()).collect(),
    }
}

/// At most `count` prompts of a file, or else of the model's held-out list; of a model that takes none, as many numbers.
fn held_out_prompts(file: Option<&Path>, folder: &ModelFolder, count: usize) -> Result<Vec<String>> {
    let mut prompts = match (file, folder.subject()) {
        (None, Subject::Nothing) => numbered(count),
        (Some(_), Subject::Nothing) => usage!("{} takes no prompts: give --samples N", shown(folder.path())),
        (Some(file), _) => read_prompts(file)?,
        (None, _) => folder
            .prompts(|prompts| &prompts.held_out)?
            .ok_or_else(|| Usage(format!("{} comes with no prompts: give --prompts FILE", shown(folder.path()))))?,
    };
    prompts.truncate(count);
    folder.check_prompts(&prompts)?;
    Ok(prompts)
}

/// What stands for the prompts of a model that takes none.
fn numbered(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("sample {number}")).collect()
}

/// The command line, as it was given.
fn command_line() -> String {
    let given = std::env::args_os().skip(1).map(|word| quoted(&word.to_string_lossy()));
    std::iter::once("secateur".to_owned()).chain(given).collect::<Vec<_>>().join(" ")
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}
