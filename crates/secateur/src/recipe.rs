//! Recipes: methods that run one after another on a model, as data.

use crate::error::{Error, Result, refuse};
use crate::settings::{
    ModelSettings, PromptSettings, PruneSettings, SharedSettings, SkipSettings, SlimSettings,
};
use clap::builder::PossibleValue;
use clap::{Arg, ArgAction, Args};
use secateur_models::files::{Limit, read_text, shown};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// What to make of a model: the methods to run, and the output.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Recipe {
    /// The model.
    #[serde(flatten)]
    pub model: ModelSettings,
    /// The folder of the new model. A plan needs none.
    pub out: Option<PathBuf>,
    /// Whether to replace an existing output folder, if secateur wrote it and nothing in it was
    /// changed, and to discard an unfinished run.
    pub force: bool,
    /// Whether to continue a stopped run for the same output.
    pub resume: bool,
    /// The methods to run, in order.
    #[serde(rename = "method")]
    pub methods: Vec<MethodSettings>,
    /// Settings of the report, and defaults of each method's settings.
    #[serde(flatten)]
    pub shared: SharedSettings,
    /// The file that the recipe was read from.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// The command line for the report [default: the recipe as JSON].
    #[serde(skip)]
    pub command: Option<String>,
}

/// A method with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum MethodSettings {
    /// Remove weights, or heads and neurons.
    Prune(PruneSettings),
    /// Reduce the rank of attention, and remove neurons.
    Slim(SlimSettings),
    /// Skip blocks.
    Skip(SkipSettings),
}

/// The names of all methods.
pub(crate) const METHODS: [&str; 3] = ["prune", "slim", "skip"];
/// Settings of a [`Recipe`] that its file cannot have, as they belong to one run.
const OF_A_RUN: [&str; 10] =
    ["model", "variant", "out", "recipe", "resume", "dry-run", "force", "quiet", "json", "threads"];
/// Settings that a method in a recipe's file cannot have. There is one report for all methods, and
/// a method that saves statistics could not continue after a stop.
const NOT_OF_A_METHOD: [&str; 4] =
    ["report-samples", "report-prompts", "save-statistics", "carry-statistics"];

impl MethodSettings {
    /// Returns the method's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Prune(_) => "prune",
            Self::Slim(_) => "slim",
            Self::Skip(_) => "skip",
        }
    }

    /// Returns the settings that all methods have.
    #[must_use]
    pub fn shared(&self) -> &SharedSettings {
        match self {
            Self::Prune(settings) => &settings.shared,
            Self::Slim(settings) => &settings.shared,
            Self::Skip(settings) => &settings.shared,
        }
    }

    /// Returns the same settings, mutably.
    pub fn shared_mut(&mut self) -> &mut SharedSettings {
        match self {
            Self::Prune(settings) => &mut settings.shared,
            Self::Slim(settings) => &mut settings.shared,
            Self::Skip(settings) => &mut settings.shared,
        }
    }
}

impl Recipe {
    /// Creates a recipe of one method, whose shared settings become those of the recipe.
    #[must_use]
    pub fn of(model: ModelSettings, method: MethodSettings) -> Self {
        let shared = method.shared().clone();
        Self { model, methods: vec![method], shared, ..Self::default() }
    }

    /// Reads a recipe from a TOML file with shared settings, and a table `[[method]]` for each
    /// method.
    ///
    /// # Errors
    /// If the file cannot be read, or has an unknown name or value. The error says which.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_text(path, Limit::Recipe)?;
        let recipe = Self::parse(&text).map_err(|error| error.of(shown(path)))?;
        Ok(Self { file: Some(path.to_owned()), ..recipe })
    }

    fn parse(text: &str) -> Result<Self> {
        let table = toml::from_str::<Map<String, Value>>(text);
        let mut table = table.map_err(|error| Error::Request(error.to_string()))?;
        let tables = match table.shift_remove("method") {
            Some(Value::Array(tables)) if !tables.is_empty() => tables,
            _ => refuse!("a recipe has a [[method]] for each of its methods, in order"),
        };
        let method = |(number, table)| {
            method(table).map_err(|error: Error| error.of(format!("method {number}")))
        };
        let methods = (1..).zip(tables).map(method).collect::<Result<Vec<_>>>()?;
        let shared = settings(table, "a recipe")?;
        let recipe = Self { methods, shared, ..Self::default() };
        recipe.check()?;
        Ok(recipe)
    }

    /// Checks that the methods can follow each other.
    ///
    /// # Errors
    /// If they cannot. The error says why.
    pub fn check(&self) -> Result<()> {
        let skips = |method: &&MethodSettings| matches!(method, MethodSettings::Skip(_));
        if self.methods.iter().filter(skips).count() > 1 {
            refuse!(
                "a recipe has one skip: what a second one learns would take the place of the first"
            );
        }
        Ok(())
    }

    /// Returns each method with the shared settings, and without a report of its own.
    pub(crate) fn steps(&self) -> impl Iterator<Item = MethodSettings> {
        self.methods.iter().cloned().map(|mut method| {
            let own = method.shared_mut();
            *own = std::mem::take(own).or(&self.shared);
            own.prompts = PromptSettings {
                report_prompts: None,
                report_samples: 0.try_into().ok(),
                ..std::mem::take(&mut own.prompts)
            };
            method
        })
    }

    /// Returns the command line for the report.
    pub(crate) fn command(&self) -> Result<String> {
        Ok(match &self.command {
            Some(command) => command.clone(),
            None => serde_json::to_string(self)?,
        })
    }
}

/// Parses the table of a method.
fn method(table: Value) -> Result<MethodSettings> {
    let Value::Object(mut table) = table else { refuse!("it is no table") };
    let name = match table.shift_remove("name") {
        Some(Value::String(name)) => name,
        Some(name) => refuse!("its name is {name}; there are {}", METHODS.join(", ")),
        None => refuse!("it has no name; there are {}", METHODS.join(", ")),
    };
    if let Some(name) = NOT_OF_A_METHOD.iter().find(|name| table.contains_key(**name)) {
        refuse!("it has {name}, which is not for a method of a recipe");
    }
    Ok(match name.as_str() {
        "prune" => MethodSettings::Prune(settings(table, &name)?),
        "slim" => MethodSettings::Slim(settings(table, &name)?),
        "skip" => MethodSettings::Skip(settings(table, &name)?),
        _ => refuse!("its name is {name:?}; there are {}", METHODS.join(", ")),
    })
}

/// Parses the settings of a table. Names, lists, and conflicts between settings are as on the
/// command line.
fn settings<T: Args + DeserializeOwned>(table: Map<String, Value>, of: &str) -> Result<T> {
    let known = T::augment_args(clap::Command::new(""));
    let argument = |name: &str| known.get_arguments().find(|known| known.get_long() == Some(name));
    let mut given = Map::new();
    for (name, value) in table {
        if OF_A_RUN.contains(&&*name) {
            refuse!("{name} is an option of the command line, and not of a recipe");
        }
        let Some(argument) = argument(&name) else { refuse!("{name:?} is no option of {of}") };
        let value = in_a_list(argument, value);
        let possible = argument.get_possible_values();
        let names = || possible.iter().map(PossibleValue::get_name);
        if let Value::String(text) = &value
            && !possible.is_empty()
            && names().all(|name| name != text)
        {
            let names = names().collect::<Vec<_>>().join(", ");
            refuse!("{name} = {value} is unknown; there are {names}");
        }
        let alone = Map::from_iter([(name.clone(), value.clone())]);
        if let Err(error) = serde_json::from_value::<T>(alone.into()) {
            refuse!("{name} = {value}: {error}");
        }
        given.insert(name, value);
    }
    for argument in given.keys().filter_map(|name| argument(name)) {
        let others = known.get_arg_conflicts_with(argument);
        let others = others.into_iter().filter_map(Arg::get_long);
        if let Some(other) = others.into_iter().find(|other| given.contains_key(*other)) {
            refuse!("{} cannot be used with {other}", argument.get_long().unwrap_or_default());
        }
    }
    Ok(serde_json::from_value(given.into())?)
}

/// Wraps a value of an option that takes several values in a list. `true` stands for all possible
/// values.
fn in_a_list(argument: &Arg, value: Value) -> Value {
    let takes_several = matches!(argument.get_action(), ArgAction::Append);
    match value {
        Value::Bool(true) if takes_several => {
            argument.get_possible_values().iter().map(|value| value.get_name()).collect()
        }
        Value::Bool(false) if takes_several => Value::Array(Vec::new()),
        value if takes_several && !value.is_array() => Value::Array(vec![value]),
        value => value,
    }
}

#[cfg(test)]
mod tests {
    use super::Recipe;

    fn options(recipe: &str) -> Result<Vec<String>, String> {
        let told = |error: &dyn std::error::Error| {
            let mut told = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                told += &format!(": {error}");
                cause = error.source();
            }
            told
        };
        let mut recipe = Recipe::parse(recipe).map_err(|error| told(&error))?;
        // The command line goes first.
        recipe.shared.sampling.steps = Some(9.try_into().unwrap());
        let line = |step: super::MethodSettings| {
            format!("{} {}", step.name(), crate::settings::options(&step).unwrap().join(" "))
        };
        Ok(recipe.steps().map(line).collect())
    }

    #[test]
    fn methods_have_their_own_settings_and_those_of_all() {
        let recipe = "steps = 5\nbatch = 2\nreport-samples = 3\n[[method]]\nname = 'slim'\n\
            budget = 0.1\nmodules = ['query-key', 'feed-forward']\ninclude = 'a.*'\n\
            [[method]]\nname = 'prune'\nstructured = true\nsteps = 7\nallocation = 'macs'\n\
            [[method]]\nname = 'skip'\nspeedup = 2\n";
        let expected = [
            "slim --budget=0.1 --modules=query-key --modules=feed-forward --include=a.* \
             --report-samples=0 --steps=9 --batch=2",
            "prune --structured=heads --structured=neurons --allocation=macs --report-samples=0 \
             --steps=7 --batch=2",
            "skip --speedup=2.0 --report-samples=0 --steps=9 --batch=2",
        ];
        assert_eq!(options(recipe).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (recipe, words) in [
            ("budget = 1", "[[method]]"),
            ("[[method]]\nbudget = 1", "method 1: it has no name; there are prune, slim, skip"),
            ("[[method]]\nname = 'generate'", "method 1: its name is \"generate\""),
            ("[[method]]\nname = 'slim'\nkeep = 0.4", "\"keep\" is no option of slim"),
            ("[[method]]\nname = 'skip'\nkeep = { a = 1 }", "keep = {\"a\":1}: invalid type"),
            ("[[method]]\nname = 'skip'\nsteps = 0", "steps = 0: must be at least 1"),
            ("[[method]]\nname = 'prune'\nmethod = 'wand'", "method = \"wand\" is unknown"),
            ("[[method]]\nname = 'slim'\nrows = 'all'", "there are values, attention"),
            ("[[method]]\nname = 'skip'\nunits = 'legs'", "units = \"legs\": "),
            ("[[method]]\nname = 'skip'\nkeep = 0.4\nspeedup = 2", "cannot be used with"),
            ("[[method]", "TOML parse error"),
            ("keep = 1\n[[method]]\nname = 'skip'", "\"keep\" is no option of a recipe"),
            (
                "[[method]]\nname = 'prune'\n\"out=/elsewhere\" = true",
                "method 1: \"out=/elsewhere\" is no option of prune",
            ),
            ("\"steps=2 \" = 3\n[[method]]\nname = 'skip'", "\"steps=2 \" is no option"),
            ("[[method]]\nname = 'prune'\nhelp = true", "\"help\" is no option"),
            ("[[method]]\nname = 'prune'\n\"\" = true", "\"\" is no option"),
            ("threads = 1\n[[method]]\nname = 'skip'", "threads is an option of the command line"),
            ("[[method]]\nname = 'skip'\nout = 'here'", "out is an option of the command line"),
            ("[[method]]\nname = 'skip'\nreport-samples = 3", "method 1: it has report-samples"),
            (
                "[[method]]\nname = 'skip'\n[[method]]\nname = 'slim'\n[[method]]\nname = 'skip'",
                "a recipe has one skip",
            ),
        ] {
            let error = options(recipe).unwrap_err();
            assert!(error.contains(words), "{recipe}: {error}");
        }
    }
}
