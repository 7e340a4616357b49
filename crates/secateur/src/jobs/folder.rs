//! Resolution of common settings: models, sampling, outputs and scores.

use crate::error::{Error, Result, refuse};
use crate::format::bytes;
use crate::settings::{
    DeviceSettings, DtypeName, ModelSettings, Positive, PromptSettings, SamplingSettings,
    ScoreSettings, SharedSettings,
};
use candle_core::DType;
use secateur_models::files::shown;
use secateur_models::{
    ClipModel, ModelFolder, Observer, OutputFolder, OutputOptions, Sampling, Subject,
};
use secateur_nn::{DeviceChoice, Placement, unusable_gpu};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The largest guidance scale that is accepted.
const LARGEST_GUIDANCE: f64 = 65535.0;

/// The default number of images at a time.
pub(crate) const BATCH: usize = 8;

/// The default model.
const DEFAULT_MODEL: &str = "models/emoji-mmdit";

/// The inputs and outputs of a method, and the work around it.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) model: &'a ModelSettings,
    /// The folder of the new model; `None` if nothing is written.
    pub(crate) out: Option<&'a Path>,
    /// The file of the recipe.
    pub(crate) file: Option<&'a Path>,
    pub(crate) force: bool,
    pub(crate) resume: bool,
    /// Whether to return only what would be done.
    pub(crate) dry_run: bool,
    /// Whether the output is in the progress folder of another output.
    pub(crate) part: bool,
    /// Expected seconds of the work that follows.
    pub(crate) later: f64,
    /// The command line for the report.
    pub(crate) command: &'a str,
    pub(crate) observer: &'a dyn Observer,
}

impl ModelSettings {
    pub(crate) fn open(&self, observer: &dyn Observer) -> Result<ModelFolder> {
        let default = Path::new(DEFAULT_MODEL);
        let path = match &self.model {
            Some(path) => path,
            None if default.is_dir() => default,
            None => refuse!(
                "no MODEL given, and there is no {DEFAULT_MODEL} here: run this in the folder of \
                 the repository, which has it, or name a model folder in the diffusers layout"
            ),
        };
        open_model(path, self.variant.as_deref(), observer)
    }
}

/// Opens a model folder, and tells the observer what a user should know of it.
pub(crate) fn open_model(
    path: &Path,
    variant: Option<&str>,
    observer: &dyn Observer,
) -> Result<ModelFolder> {
    if path.symlink_metadata().is_err() {
        refuse!("{}: no such folder{}", shown(path), meant(path).unwrap_or_default());
    }
    let folder = ModelFolder::open(path, variant)?;
    folder.warnings().iter().for_each(|warning| observer.warn(warning));
    Ok(folder)
}

impl DeviceSettings {
    /// Returns the type of numbers that `folder` is computed in on a GPU.
    pub(crate) fn dtype_of(&self, folder: &ModelFolder) -> DtypeName {
        match (self.dtype.unwrap_or_default(), folder.checkpoint().dtype()) {
            (DtypeName::Auto, DType::F16 | DType::BF16) => DtypeName::Bf16,
            (DtypeName::Auto, _) => DtypeName::F32,
            (name, _) => name,
        }
    }

    /// Sets the device and type that the settings say on a folder.
    pub(crate) fn at(&self, folder: ModelFolder, observer: &dyn Observer) -> Result<ModelFolder> {
        let choice = self.device.unwrap_or_default();
        if choice == DeviceChoice::Auto
            && let Some(missing) = unusable_gpu()
        {
            observer.warn(&format!("the GPU cannot be used, so the CPU computes: {missing}"));
        }
        let device = choice.open();
        let device = device.map_err(|error| Error::Request(error.to_string()))?;
        if device.is_cpu() {
            match self.dtype.unwrap_or_default() {
                DtypeName::Auto | DtypeName::F32 => return Ok(folder),
                _ => refuse!("the CPU computes in f32: leave `dtype` out, or give a `device`"),
            }
        }
        let dtype = match self.dtype_of(&folder) {
            DtypeName::F16 => DType::F16,
            DtypeName::Bf16 => DType::BF16,
            DtypeName::F32 | DtypeName::Auto => DType::F32,
        };
        let placement = Placement::new(device, dtype);
        observer.say(&format!("computing in {}", placement.description().unwrap_or_default()));
        Ok(folder.at(placement))
    }
}

/// Returns what a report tells of the GPU that computed: nothing on the CPU.
pub(crate) fn of_gpu(placement: &Placement) -> Map<String, Value> {
    let Some(gpu) = placement.description() else { return Map::new() };
    let mut told = Map::from_iter([("device".to_owned(), gpu.into())]);
    if let Some(memory) = placement.memory() {
        told.insert("memory of the GPU at its peak".to_owned(), bytes(memory.peak).into());
    }
    told
}

/// Returns a hint for the name of a folder that does not exist.
pub(crate) fn meant(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    if ["heads", "neurons"].contains(&name) {
        return Some(format!(": for that option write `structured={name}`"));
    }
    let parent =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folders = std::fs::read_dir(parent).ok()?.flatten().filter(|entry| entry.path().is_dir());
    let names = folders.filter_map(|entry| entry.file_name().into_string().ok());
    let alike = |other: &String| strsim::normalized_damerau_levenshtein(name, other);
    let nearest =
        names.map(|other| (alike(&other), other)).max_by(|one, other| one.0.total_cmp(&other.0));
    let (_, nearest) = nearest.filter(|(alike, _)| *alike > 0.6)?;
    Some(format!(": {} is there", shown(&parent.join(nearest))))
}

impl SamplingSettings {
    /// Returns the sampling, with `batch` images at a time if no number is given.
    pub(crate) fn sampling(&self, folder: &ModelFolder, batch: usize) -> Result<Sampling> {
        let own = folder.sampling();
        let guidance = self.guidance.unwrap_or(own.guidance);
        if !guidance.is_finite() || guidance.abs() > LARGEST_GUIDANCE {
            refuse!("guidance {guidance} is not a number to sample with");
        }
        let factor = folder.factor();
        let latents = |side: &str, pixels: Option<Positive>, own: usize| match pixels
            .map(Positive::get)
        {
            None => Ok(own),
            Some(pixels) if pixels.is_multiple_of(factor) => Ok(pixels / factor),
            Some(pixels) => {
                refuse!("`{side} {pixels}` is not a multiple of {factor}, the pixels of a latent")
            }
        };
        let sampling = Sampling {
            steps: self.steps.map_or(own.steps, Positive::get),
            latent: (
                latents("height", self.height, own.latent.0)?,
                latents("width", self.width, own.latent.1)?,
            ),
            guidance,
            sampler: self.sampler.map_or_else(|| folder.sampler(), Ok)?,
            negative_prompt: self.negative_prompt.clone().unwrap_or_default(),
            seed: self.seed(),
            batch: self.batch.map_or(batch, Positive::get),
            ..own
        };
        folder.check(&sampling)?;
        Ok(sampling)
    }
}

impl<'a> Job<'a> {
    fn options(&self) -> OutputOptions<'a> {
        OutputOptions {
            replace: self.force,
            resume: self.resume,
            part: self.part,
            observer: self.observer,
        }
    }

    /// Opens the model, to be computed where the settings say.
    pub(crate) fn open(&self, shared: &SharedSettings) -> Result<ModelFolder> {
        shared.device.at(self.model.open(self.observer)?, self.observer)
    }

    /// Prepares the folder of the new model, which also keeps finished parts of the run.
    pub(crate) fn output(&self, inputs: &[&Path]) -> Result<OutputFolder<'a>> {
        let Some(out) = self.out else { refuse!("`out DIR` is needed") };
        Ok(OutputFolder::create(out, self.options(), inputs)?)
    }

    /// Returns the files and folders that are read for a model of `folder`.
    pub(crate) fn inputs(&self, shared: &SharedSettings, folder: &ModelFolder) -> Vec<PathBuf> {
        let PromptSettings { prompts, report_prompts, .. } = &shared.prompts;
        let files = [prompts.as_deref(), report_prompts.as_deref(), self.file];
        let files = files.into_iter().flatten().map(Path::to_owned);
        files.chain(shared.score.path(folder)).chain([folder.path().to_owned()]).collect()
    }

    /// Prepares the folder of another output, which cannot be resumed.
    pub(crate) fn other_output(&self, out: &Path, inputs: &[&Path]) -> Result<OutputFolder<'a>> {
        let options = OutputOptions { resume: false, ..self.options() };
        Ok(OutputFolder::create(out, options, inputs)?)
    }

    /// Fails if a folder for the new model is named and cannot be made, or there is no space for
    /// `copied` bytes.
    pub(crate) fn check_output(&self, inputs: &[&Path], copied: u64) -> Result<()> {
        let Some(out) = self.out else { return Ok(()) };
        OutputFolder::check(out, self.options(), inputs)?;
        Ok(OutputFolder::check_space(out, copied)?)
    }

    /// Fails if another output, which cannot be resumed, cannot be made.
    pub(crate) fn check_other_output(&self, out: &Path, inputs: &[&Path]) -> Result<()> {
        let options = OutputOptions { resume: false, ..self.options() };
        Ok(OutputFolder::check(out, options, inputs)?)
    }
}

/// Prepares the folder of an output that cannot be resumed.
pub(crate) fn output<'a>(
    out: &Path,
    force: bool,
    inputs: &[&Path],
    observer: &'a dyn Observer,
) -> Result<OutputFolder<'a>> {
    let options = OutputOptions { replace: force, observer, ..OutputOptions::default() };
    Ok(OutputFolder::create(out, options, inputs)?)
}

/// Borrows paths.
pub(crate) fn borrowed(paths: &[PathBuf]) -> Vec<&Path> {
    paths.iter().map(PathBuf::as_path).collect()
}

/// Returns a warning on links in a model folder that are not followed, if there are any.
pub(crate) fn links_left_out(folder: &ModelFolder) -> Option<String> {
    let links: Vec<String> = folder.links_left_out().map(|link| shown(link).to_string()).collect();
    let first = links.first()?;
    let problem = "not copied: links are followed in one step, to files in the model folder or \
        called as a model's are";
    Some(format!(
        "{}: {first} and {} more links are {problem}",
        shown(folder.path()),
        links.len() - 1
    ))
}

/// Returns `sampling` with the schedule of `folder`, if its model skips.
pub(crate) fn skipping(sampling: &Sampling, folder: &ModelFolder, adapt: bool) -> Result<Sampling> {
    Ok(Sampling { reuse: folder.reuse(sampling, adapt)?, ..sampling.clone() })
}

impl ScoreSettings {
    /// Returns the path of the CLIP that was requested, or of the model's own, if it exists: beside
    /// the model folder, or in `models/` under the current folder. Pictures of a model that takes
    /// nothing are not scored.
    pub(crate) fn path(&self, folder: &ModelFolder) -> Option<PathBuf> {
        if folder.subject() == Subject::Nothing {
            return None;
        }
        if let Some(path) = &self.clip {
            return Some(path.clone());
        }
        let own = folder.manifest().clip.as_ref()?;
        let name = own.file_name().map(PathBuf::from).unwrap_or_default();
        let candidates = [folder.path().join(own), Path::new("models").join(name)];
        candidates.into_iter().find(|path| path.join("config.json").is_file())
    }

    /// Returns the digest of that CLIP, or an empty text if no pictures are scored.
    pub(crate) fn digest(
        &self,
        folder: &ModelFolder,
        pictures: usize,
        observer: &dyn Observer,
    ) -> Result<String> {
        let used = self.path(folder).filter(|_| pictures > 0);
        Ok(used.map_or(Ok(String::new()), |path| ClipModel::digest(&path, observer))?)
    }

    pub(crate) fn open(&self, folder: &ModelFolder) -> Result<Option<ClipModel>> {
        if folder.subject() == Subject::Nothing && self.clip.is_some() {
            refuse!(
                "`clip` scores pictures against prompts, and {} takes none",
                shown(folder.path())
            );
        }
        let open = |path: PathBuf| ClipModel::open(&path, folder.placement());
        Ok(self.path(folder).map(open).transpose()?)
    }
}

/// Returns the report's note if there is no text-image score.
pub(crate) fn no_score(folder: &ModelFolder) -> &'static str {
    match folder.subject() {
        Subject::Nothing => {
            "no text-image score: the model takes no text that its pictures could fit"
        }
        _ => "no text-image score: the model names no CLIP that is there; `clip DIR` gives one",
    }
}

/// Returns names for folders: their last parts, or their paths if any of the last parts are equal.
pub(crate) fn names(folders: &[&Path]) -> Vec<String> {
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
