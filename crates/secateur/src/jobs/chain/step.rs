//! One method of a chain.

use crate::error::Result;
use crate::format::quoted;
use crate::recipe::{METHODS, MethodSettings, Recipe};
use crate::settings::{CalibrationSettings, ModelSettings, options};
use secateur_models::OutputFolder;
use serde_json::json;
use std::path::{Path, PathBuf};

/// A method of a recipe. Its files are in the progress folder of the recipe's output.
pub(super) struct Step {
    /// Its settings, without the statistics that methods pass on.
    pub(super) settings: MethodSettings,
    /// Its input: the model that the method before it made.
    pub(super) model: ModelSettings,
    /// The folder of its new model.
    pub(super) out: PathBuf,
    /// Digest of everything that the new model depends on: the first model, and the settings and
    /// prompts of the methods up to this one.
    pub(super) key: String,
    /// Whether it uses the statistics that the method before it carries over, instead of a
    /// calibration.
    pub(super) uses_statistics: bool,
    /// Whether it carries statistics over to its new model.
    pub(super) carries_statistics: bool,
}

impl Step {
    /// Creates the steps of a recipe, each on the model of the one before, in folders beside `out`.
    pub(super) fn of(
        recipe: &Recipe,
        (model, variant): (&Path, Option<&str>),
        out: &Path,
    ) -> Vec<Self> {
        let progress = OutputFolder::progress_of(out);
        let mut input = model.to_owned();
        let step = |(number, settings): (usize, MethodSettings)| {
            let out = progress.join(format!("{number}-{}", settings.name()));
            let model = std::mem::replace(&mut input, out.clone());
            Self {
                settings,
                model: ModelSettings { model: Some(model), variant: variant.map(str::to_owned) },
                out,
                key: String::new(),
                uses_statistics: false,
                carries_statistics: false,
            }
        };
        (1..).zip(recipe.steps()).map(step).collect()
    }

    /// Returns the calibration settings, if the method calibrates.
    pub(super) fn calibration(&self) -> Option<&CalibrationSettings> {
        match &self.settings {
            MethodSettings::Prune(settings) => Some(&settings.calibration),
            MethodSettings::Slim(settings) => Some(&settings.calibration),
            MethodSettings::Skip(_) => None,
        }
    }

    /// Returns the settings with the statistics that the method uses and carries over.
    pub(super) fn settings_with_statistics(&self) -> MethodSettings {
        let mut settings = self.settings.clone();
        let calibration = match &mut settings {
            MethodSettings::Prune(settings) => &mut settings.calibration,
            MethodSettings::Slim(settings) => &mut settings.calibration,
            MethodSettings::Skip(_) => return settings,
        };
        if self.uses_statistics {
            calibration.statistics = self.model.model.as_deref().map(|out| beside(out, STATISTICS));
        }
        if self.carries_statistics {
            calibration.carry_statistics = Some(self.statistics());
        }
        settings
    }

    /// Returns the statistics that the user gave the method.
    pub(super) fn statistics_given(&self) -> Option<&PathBuf> {
        self.calibration()?.statistics.as_ref()
    }

    /// Returns the equivalent command line of the method.
    pub(super) fn command(&self) -> Result<String> {
        let settings = self.settings_with_statistics();
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let model = self.model.model.as_deref().map_or_else(String::new, path);
        let mut words = vec!["secateur".to_owned(), settings.name().to_owned(), model];
        words.extend(options(&json!({ "out": self.out, "variant": self.model.variant }))?);
        words.extend(options(&settings)?);
        Ok(words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "))
    }

    /// Returns whether `name` is that of an entry of a step in a recipe's progress folder.
    pub(super) fn is_own(name: &str) -> bool {
        let hidden = name.strip_prefix('.').and_then(|name| name.strip_suffix(".secateur"));
        let Some((number, name)) = hidden.unwrap_or(name).split_once('-') else {
            return name == "run.json";
        };
        let mut parts = name.split('.');
        let is_method = number.parse::<u32>().is_ok()
            && parts.next().is_some_and(|name| METHODS.contains(&name));
        let is_token =
            |part: &str| part.len() == 24 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_ending = |part| match hidden {
            Some(_) => part == STATISTICS || is_token(part),
            None => part == STATISTICS || part == "json",
        };
        is_method && parts.all(is_ending)
    }

    /// The path of the statistics for the next method.
    pub(super) fn statistics(&self) -> PathBuf {
        beside(&self.out, STATISTICS)
    }

    /// The path of the record of the finished method.
    pub(super) fn made_path(&self) -> PathBuf {
        beside(&self.out, "json")
    }
}

/// The suffix of the statistics that are passed on.
const STATISTICS: &str = "statistics";

/// Returns the path of a file that belongs to a method's new model: the model's path with a suffix.
fn beside(out: &Path, ending: &str) -> PathBuf {
    let mut name = out.to_owned().into_os_string();
    name.push(format!(".{ending}"));
    name.into()
}
