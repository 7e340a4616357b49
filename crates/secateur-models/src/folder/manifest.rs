//! `secateur.json`: the facts about a model that the diffusers layout has no place for.

use crate::classes::Generation;
use crate::error::{Error, Result, invalid, shown};
use crate::files::{Limit, is_inside, read_fields, read_json};
use crate::reuse::ReuseSchedule;
use crate::samplers::{MOST_STEPS, Sampler};
use crate::structure::Removals;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The defaults of sampling that a model sets in place of its class's [`Generation`].
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct GenerationChanges {
    steps: Option<usize>,
    guidance: Option<f64>,
    max_sequence_length: Option<usize>,
    sampler: Option<String>,
}

impl GenerationChanges {
    /// Describes a problem of its numbers, if there is one.
    fn problem(&self) -> Option<String> {
        let within = |name: &str, number: Option<usize>, range: RangeInclusive<usize>| {
            let number = number.filter(|number| !range.contains(number))?;
            Some(format!("generation.{name} {number} must be {} to {}", range.start(), range.end()))
        };
        let guidance =
            self.guidance.filter(|guidance| guidance.is_nan() || guidance.abs() > LARGEST_GUIDANCE);
        within("steps", self.steps, 1..=MOST_STEPS)
            .or_else(|| {
                within("max_sequence_length", self.max_sequence_length, 0..=LONGEST_SEQUENCE)
            })
            .or_else(|| Some(format!("generation.guidance {} is beyond any model's", guidance?)))
    }
}

/// Prompt lists that come with a model, relative to its folder. For a model with classes they hold
/// labels.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Prompts {
    /// The prompts for calibration.
    pub calibration: PathBuf,
    /// Prompts that neither training nor calibration used.
    pub held_out: PathBuf,
}

/// How a denoiser is smaller than its `config.json` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Compressed {
    removals: Removals,
    /// By parameter.
    shapes: BTreeMap<String, ChangedShape>,
}

/// The two shapes of a parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedShape {
    /// The shape by the configuration.
    pub was: Vec<usize>,
    /// The shape in the weight files.
    pub is: Vec<usize>,
}

/// The file. Unknown keys are kept: a saved model gets a copy of it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// Version of this format.
    pub format_version: u32,
    generation: GenerationChanges,
    /// Prompt lists.
    pub prompts: Option<Prompts>,
    /// A CLIP folder that scores this model's domain, relative to the model folder.
    pub clip: Option<PathBuf>,
    /// For a model with classes: a file, relative to its folder, with the text that pictures of
    /// each label are scored against, one per line, in the order of the labels. Without it the
    /// label's name is the text.
    pub captions: Option<PathBuf>,
    /// A [`ReuseSchedule`](crate::ReuseSchedule), relative to its folder.
    pub reuse: Option<PathBuf>,
    compressed: Compressed,
}

/// No guidance scale is larger.
const LARGEST_GUIDANCE: f64 = 65535.0;

/// No text has more tokens of T5.
const LONGEST_SEQUENCE: usize = 4096;

/// Its name.
pub(crate) const MANIFEST: &str = "secateur.json";

/// The newest version of the format that is understood: the first to tell of shapes that differ
/// from the configuration's.
const FORMAT_VERSION: u32 = 2;

impl Manifest {
    /// Reads the file of a model folder, if it has one.
    ///
    /// # Errors
    /// If it is damaged, or of a newer version.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        if !path.is_file() {
            return Ok(Self::default());
        }
        let fields: Map<String, Value> = read_json(&path, Limit::Config)?;
        if let Some(Value::Object(generation)) = fields.get("generation") {
            // An error of the whole would not name the field.
            let _: GenerationChanges = read_fields(&path, generation)?;
        }
        let manifest: Self = read_fields(&path, &fields)?;
        if manifest.format_version > FORMAT_VERSION {
            let version = manifest.format_version;
            invalid!(path, "format_version {version} is newer than this secateur; update it");
        }
        manifest.check_names().map_err(|problem| Error::invalid(&path, problem))?;
        if let Some(problem) = manifest.generation.problem() {
            return Err(Error::invalid(path, problem));
        }
        if let Some(name) = &manifest.generation.sampler {
            name.parse::<Sampler>()
                .map_err(|error| Error::invalid(path, format!("generation.sampler: {error}")))?;
        }
        Ok(manifest)
    }

    /// Fails if a file is named that is not inside the model folder, or a CLIP that does not stand
    /// there or beside it.
    fn check_names(&self) -> std::result::Result<(), String> {
        let prompts = self.prompts.as_ref();
        let calibration = ("prompts.calibration", prompts.map(|prompts| &prompts.calibration));
        let held_out = ("prompts.held_out", prompts.map(|prompts| &prompts.held_out));
        let files = [
            calibration,
            held_out,
            ("captions", self.captions.as_ref()),
            ("reuse", self.reuse.as_ref()),
        ];
        for (field, named) in files {
            if let Some(named) = named.filter(|named| !is_inside(named)) {
                return Err(format!(
                    "{field}: {} is not the name of a file in the model folder",
                    shown(named)
                ));
            }
        }
        let beside = |clip: &Path| {
            clip.strip_prefix("..")
                .is_ok_and(|rest| rest.components().count() == 1 && is_inside(rest))
        };
        match self.clip.as_deref().filter(|clip| !is_inside(clip) && !beside(clip)) {
            Some(clip) => Err(format!(
                "clip: {} is neither a folder in the model folder nor ../NAME beside it",
                shown(clip)
            )),
            None => Ok(()),
        }
    }

    /// The heads, dimensions and neurons that the model lacks.
    #[must_use]
    pub fn removals(&self) -> &Removals {
        &self.compressed.removals
    }

    /// The content of the file for a model that lacks `removals`, and whose parameters have
    /// `shapes`. All else that the folder's file holds is kept, whether it is known or not.
    ///
    /// # Errors
    /// If the file is damaged.
    pub(crate) fn with_removals(
        folder: &Path,
        removals: &Removals,
        shapes: BTreeMap<String, ChangedShape>,
    ) -> Result<Option<String>> {
        let path = folder.join(MANIFEST);
        let mut file: Map<String, Value> = match path.is_file() {
            true => read_json(&path, Limit::Config)?,
            false if removals.is_empty() => return Ok(None),
            false => Map::new(),
        };
        if file.remove("compressed").is_some() {
            file.insert("format_version".into(), 1.into());
        }
        if !removals.is_empty() {
            file.insert("format_version".into(), FORMAT_VERSION.into());
            file.insert(
                "compressed".into(),
                json!(Compressed { removals: removals.clone(), shapes }),
            );
        }
        let text =
            serde_json::to_string_pretty(&file).map_err(|error| Error::invalid(path, error))?;
        Ok(Some(text + "\n"))
    }

    /// The content of the file for a model that skips units by the schedule in the file `name`.
    ///
    /// # Errors
    /// If the file is damaged.
    pub(crate) fn with_reuse(folder: &Path, name: &str, reuse: &ReuseSchedule) -> Result<String> {
        let path = folder.join(MANIFEST);
        let mut file: Map<String, Value> =
            if path.is_file() { read_json(&path, Limit::Config)? } else { Map::new() };
        file.entry("format_version").or_insert_with(|| 1.into());
        file.insert("reuse".into(), name.into());
        let generation = file.entry("generation").or_insert_with(|| json!({}));
        if let Some(generation) = generation.as_object_mut() {
            generation.insert("steps".into(), reuse.steps.into());
            generation.insert("sampler".into(), reuse.sampler.to_string().into());
        }
        let text =
            serde_json::to_string_pretty(&file).map_err(|error| Error::invalid(path, error))?;
        Ok(text + "\n")
    }

    /// The sampler that the model sets, if it is not its scheduler's.
    #[must_use]
    pub fn sampler(&self) -> Option<Sampler> {
        self.generation.sampler.as_ref().and_then(|name| name.parse().ok())
    }

    /// The defaults of sampling, with those of the class in `class`.
    #[must_use]
    pub fn generation(&self, class: Generation) -> Generation {
        let own = &self.generation;
        Generation {
            steps: own.steps.unwrap_or(class.steps),
            guidance: own.guidance.unwrap_or(class.guidance),
            max_sequence_length: own.max_sequence_length.unwrap_or(class.max_sequence_length),
        }
    }
}
