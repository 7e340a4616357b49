//! Recipes, and the commands that they stand for.

use crate::args::{Cli, Command, CompressArgs, JobArgs};
use crate::commands::request::quoted;
use anyhow::{Context, Result, bail};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, Parser};
use secateur_models::OutputFolder;
use secateur_models::files::{Limit, read_text, shown};
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

/// Commands that are methods.
const METHODS: [&str; 3] = ["prune", "slim", "skip"];
/// Options that a recipe cannot have: the command line says them, for all methods.
const OF_THE_COMMAND_LINE: [&str; 9] =
    ["model", "out", "recipe", "resume", "dry-run", "force", "quiet", "json", "threads"];
/// Options that a method of a recipe cannot have beside these: there is one report, and a method
/// that saves statistics could not go on after it was stopped.
const NOT_OF_A_METHOD: [&str; 4] =
    ["report-samples", "report-prompts", "save-statistics", "carry-statistics"];
/// Options of `compress` that its methods do not get: each has its own, and there is one report.
const OWN: [&str; 4] = ["model", "out", "report_samples", "report_prompts"];

/// A file of methods.
pub(super) struct Recipe {
    path: PathBuf,
    /// The words of the command line with the recipe's own options before all others.
    words: Vec<OsString>,
    methods: Vec<(String, Vec<OsString>)>,
}

/// A method as a command.
pub(super) struct Method {
    pub(super) name: String,
    /// Its new model.
    pub(super) out: PathBuf,
    /// SHA-256 of what the new model depends on: the first model, and the options and prompts of
    /// the methods up to this one.
    pub(super) key: String,
    words: Vec<OsString>,
}

impl Recipe {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = read_text(path, Limit::Recipe)?;
        Self::parse(path, &text, std::env::args_os().collect())
            .with_context(|| shown(path).to_string())
    }

    fn parse(path: &Path, text: &str, mut words: Vec<OsString>) -> Result<Self> {
        let mut table: Map<String, Value> = toml::from_str(text)?;
        let Some(Value::Array(tables)) = table.shift_remove("method") else {
            bail!("a recipe has a [[method]] for each of its methods, in order");
        };
        let mut methods = Vec::new();
        for (number, value) in (1..).zip(tables) {
            let Value::Object(mut method) = value else { bail!("method {number} is no table") };
            match method.shift_remove("name") {
                Some(Value::String(name)) if METHODS.contains(&&*name) => {
                    if let Some(option) =
                        NOT_OF_A_METHOD.iter().find(|option| method.contains_key(**option))
                    {
                        bail!(
                            "method {number} has {option}, which is not for a method of a recipe"
                        );
                    }
                    let words =
                        options(&name, &method).with_context(|| format!("method {number}"))?;
                    methods.push((name, words));
                }
                Some(name) => {
                    bail!("method {number} has the name {name}; there are {}", METHODS.join(", "))
                }
                None => bail!("method {number} has no name; there are {}", METHODS.join(", ")),
            }
        }
        if methods.iter().filter(|(name, _)| name == "skip").count() > 1 {
            bail!(
                "a recipe has one skip: what a second one learns would take the place of the first"
            );
        }
        if methods.is_empty() {
            bail!("a recipe has a [[method]] for each of its methods, in order");
        }
        let own = options("compress", &table)?;
        let place =
            words.iter().position(|word| word == "compress").map_or(words.len(), |place| place + 1);
        words.splice(place..place, own);
        Ok(Self { path: path.to_owned(), words, methods })
    }

    fn problem(&self, error: &clap::Error) -> anyhow::Error {
        anyhow::anyhow!("{}: {}", shown(&self.path), error.render().to_string().trim())
    }

    /// The arguments with what the recipe says for all.
    pub(super) fn merged(&self) -> Result<CompressArgs> {
        match Cli::try_parse_from(&self.words).map_err(|error| self.problem(&error))?.command {
            Command::Compress(args) => Ok(*args),
            _ => bail!("{}: not a recipe for compress", shown(&self.path)),
        }
    }

    /// Its methods, each of the model of the one before, beside `out`.
    pub(super) fn methods(&self, model: &Path, out: &Path) -> Result<Vec<Method>> {
        let matches = Cli::command()
            .try_get_matches_from(&self.words)
            .map_err(|error| self.problem(&error))?;
        let given = matches.subcommand().map(|(_, matches)| matches).context("no command")?;
        let progress = OutputFolder::progress_of(out);
        let mut input = model.to_owned();
        let mut methods = Vec::new();
        for (number, (name, own)) in (1..).zip(&self.methods) {
            let out = progress.join(format!("{number}-{name}"));
            let mut words: Vec<OsString> = vec!["secateur".into(), name.into(), input.into()];
            words.push(option("out", out.as_os_str()));
            words.extend(inherited(given));
            words.extend(own.iter().cloned());
            words.push("--report-samples=0".into());
            let method = Method { name: name.clone(), out: out.clone(), key: String::new(), words };
            method
                .command(None)
                .with_context(|| format!("{}: method {number}", shown(&self.path)))?;
            methods.push(method);
            input = out;
        }
        Ok(methods)
    }
}

fn command(words: impl IntoIterator<Item = OsString>) -> Result<Command> {
    let cli = Cli::try_parse_from(words);
    Ok(cli.map_err(|error| anyhow::anyhow!("{}", error.render().to_string().trim()))?.command)
}

fn option(name: &str, value: impl AsRef<std::ffi::OsStr>) -> OsString {
    let mut word = OsString::from(format!("--{name}="));
    word.push(value);
    word
}

/// A table as options of a command, which has to know them all.
fn options(command: &str, table: &Map<String, Value>) -> Result<Vec<OsString>> {
    let all = Cli::command();
    let arguments =
        || all.find_subcommand(command).into_iter().flat_map(clap::Command::get_arguments);
    let known = |name: &str| arguments().any(|argument| argument.get_long() == Some(name));
    let mut words = Vec::new();
    for (name, value) in table {
        if OF_THE_COMMAND_LINE.contains(&&**name) {
            bail!("{name} is an option of the command line, and not of a recipe");
        }
        if !known(name) {
            bail!("{name:?} is no option of {command}");
        }
        let values = match value {
            Value::Array(values) => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        for value in values {
            match value {
                Value::Bool(true) => words.push(format!("--{name}").into()),
                Value::Bool(false) => {}
                Value::String(text) => words.push(option(name, text)),
                Value::Number(number) => words.push(option(name, number.to_string())),
                value => bail!("{name} = {value} is no option"),
            }
        }
    }
    Ok(words)
}

/// What was given for all methods.
fn inherited(given: &ArgMatches) -> Vec<OsString> {
    let command = Cli::command();
    let arguments =
        command.find_subcommand("compress").into_iter().flat_map(clap::Command::get_arguments);
    let shared =
        METHODS.iter().filter_map(|name| command.find_subcommand(name)).collect::<Vec<_>>();
    let wanted = |argument: &&clap::Arg| {
        let id = argument.get_id();
        let known =
            shared.iter().all(|method| method.get_arguments().any(|other| other.get_id() == id));
        let takes_values = argument.get_action().takes_values();
        let by_hand = given.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        known && takes_values && by_hand && !OWN.contains(&id.as_str())
    };
    let words = |argument: &clap::Arg| {
        let name = argument.get_long().unwrap_or_default().to_owned();
        let values = given.get_raw(argument.get_id().as_str()).into_iter().flatten();
        values.map(|value| option(&name, value)).collect::<Vec<_>>()
    };
    arguments.filter(wanted).flat_map(words).collect()
}

impl Method {
    /// The command, with one more option if that is given.
    pub(super) fn command(&self, option: Option<&str>) -> Result<Command> {
        command(self.words.iter().cloned().chain(option.map(Into::into)))
    }

    /// The command as a dry run on another model, without what other methods leave for it.
    pub(super) fn rehearsal(&self, model: &Path) -> Result<Command> {
        let mut words = self.words.clone();
        words[2] = model.into();
        words[3] = "--dry-run".into();
        let between = [option("statistics", ""), option("carry-statistics", "")];
        let of_methods = |word: &OsString| {
            let word = word.to_string_lossy();
            let value = between
                .iter()
                .find_map(|option| word.strip_prefix(&*option.to_string_lossy()).map(Path::new));
            value.is_some_and(|path| self.is_beside(path))
        };
        words.retain(|word| !of_methods(word));
        command(words)
    }

    /// Its name and its options, without the paths of what methods make.
    pub(super) fn options(&self) -> String {
        let progress = self.out.parent().unwrap_or(Path::new("")).to_string_lossy();
        // The input is in the third place, the output after it.
        let words = self.words.iter().enumerate().filter(|(place, _)| ![0, 2, 3].contains(place));
        let words: Vec<_> =
            words.map(|(_, word)| word.to_string_lossy().replace(&*progress, "")).collect();
        format!("{words:?}")
    }

    /// Whether entries in the progress of a recipe are called so.
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
            Some(_) => part == "statistics" || is_token(part),
            None => part == "statistics" || part == "json",
        };
        is_method && parts.all(is_ending)
    }

    /// What it was told of model, prompts and output.
    pub(super) fn job(&self) -> Result<JobArgs> {
        Ok(match self.command(None)? {
            Command::Prune(args) => args.run.job,
            Command::Slim(args) => args.run.job,
            Command::Skip(args) => args.job,
            _ => bail!("{self} is no method"),
        })
    }

    /// Gives an option to the command.
    pub(super) fn add(&mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) {
        self.words.push(option(name, value));
    }

    /// Statistics for the next method.
    pub(super) fn statistics(&self) -> PathBuf {
        self.beside("statistics")
    }

    /// Something that belongs to its new model, under that name with an ending.
    pub(super) fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.out.clone().into_os_string();
        name.push(format!(".{ending}"));
        name.into()
    }

    /// Those that it uses.
    pub(super) fn statistics_read(&self) -> Result<Option<PathBuf>> {
        Ok(match self.command(None)? {
            Command::Prune(args) => args.run.statistics,
            Command::Slim(args) => args.run.statistics,
            _ => None,
        })
    }

    /// Whether a folder is one of those that the methods of its recipe make.
    pub(super) fn is_beside(&self, path: &Path) -> bool {
        path.parent() == self.out.parent()
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words =
            self.words.iter().map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>();
        f.write_str(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::Recipe;
    use std::path::Path;

    fn commands(recipe: &str, words: &str) -> Result<Vec<String>, String> {
        let words = words.split(' ').map(Into::into).collect();
        let recipe = Recipe::parse(Path::new("recipe.toml"), recipe, words)
            .map_err(|error| format!("{error:#}"))?;
        let methods = recipe
            .methods(Path::new("model"), Path::new("to/out"))
            .map_err(|error| format!("{error:#}"))?;
        Ok(methods.iter().map(ToString::to_string).collect())
    }

    const WORDS: &str =
        "secateur compress model --recipe recipe.toml --out to/out --steps 9 --report-samples 3";

    #[test]
    fn methods_become_commands() {
        let recipe = "steps = 5\nbatch = 2\n[[method]]\nname = 'slim'\nbudget = 0.1\nmodules = \
            ['query-key', 'feed-forward']\n\
                      [[method]]\nname = 'prune'\nstructured = true\nsteps = 7\n[[method]]\nname = \
                      'skip'\nspeedup = 2\n";
        let expected = [
            "secateur slim model --out=to/.out.secateur/progress/1-slim --steps=9 --batch=2 \
             --budget=0.1 --modules=query-key \
             --modules=feed-forward --report-samples=0",
            "secateur prune to/.out.secateur/progress/1-slim \
             --out=to/.out.secateur/progress/2-prune --steps=9 --batch=2 --structured --steps=7 \
             --report-samples=0",
            "secateur skip to/.out.secateur/progress/2-prune \
             --out=to/.out.secateur/progress/3-skip --steps=9 --batch=2 --speedup=2 \
             --report-samples=0",
        ];
        assert_eq!(commands(recipe, WORDS).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (recipe, words) in [
            ("budget = 1", "[[method]]"),
            ("[[method]]\nbudget = 1", "method 1 has no name; there are prune, slim, skip"),
            ("[[method]]\nname = 'generate'", "method 1 has the name \"generate\""),
            ("[[method]]\nname = 'slim'\nkeep = 0.4", "\"keep\" is no option of slim"),
            ("[[method]]\nname = 'skip'\nkeep = { a = 1 }", "is no option"),
            ("[[method]", "TOML parse error"),
            ("keep = 1\n[[method]]\nname = 'skip'", "\"keep\" is no option of compress"),
            (
                "[[method]]\nname = 'prune'\n\"out=/elsewhere\" = true",
                "method 1: \"out=/elsewhere\" is no option of prune",
            ),
            ("\"steps=2 \" = 3\n[[method]]\nname = 'skip'", "\"steps=2 \" is no option"),
            ("[[method]]\nname = 'prune'\nhelp = true", "\"help\" is no option"),
            ("[[method]]\nname = 'prune'\n\"\" = true", "\"\" is no option"),
            ("threads = 1\n[[method]]\nname = 'skip'", "threads is an option of the command line"),
            ("[[method]]\nname = 'skip'\nout = 'here'", "out is an option of the command line"),
            ("[[method]]\nname = 'skip'\nreport-samples = 3", "method 1 has report-samples"),
            (
                "[[method]]\nname = 'skip'\n[[method]]\nname = 'slim'\n[[method]]\nname = 'skip'",
                "a recipe has one skip",
            ),
        ] {
            let error = commands(recipe, WORDS).unwrap_err();
            assert!(error.contains(words), "{recipe}: {error}");
        }
    }
}
