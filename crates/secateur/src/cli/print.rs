//! Text output to the terminal.

use crate::cli::args::Cli;
use anyhow::{Context, Result};
use clap::CommandFactory;
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::LazyLock;

/// Prints lines on standard output. If the reader has closed it, ends the output without an error.
pub(crate) fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{}", printable(text)) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("standard output")
        }
        _ => Ok(()),
    }
}

/// Prints a value as JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

/// Prints a line on standard error.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable(&with_flags(line)));
}

/// Prints a warning on standard error.
pub(crate) fn warn(text: &str) {
    say(&format!("warning: {text}"));
}

/// Escapes control characters other than line ends, so that names of files and tensors in a text
/// cannot control the terminal.
fn printable(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\n';
    if !text.contains(steers) {
        return text.into();
    }
    let escaped = |c: char| if steers(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect::<String>().into()
}

/// Replaces the settings in backquotes in a message of the library by options: `` `batch 4` ``
/// becomes `--batch 4`.
pub(crate) fn with_flags(text: &str) -> String {
    static OPTIONS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let commands = Cli::command();
        let arguments = commands.get_subcommands().flat_map(clap::Command::get_arguments);
        let common = commands.get_arguments();
        let names = arguments.chain(common).filter_map(|argument| argument.get_long());
        names.map(str::to_owned).chain(["help".into(), "version".into()]).collect()
    });
    let is_option = |part: &str| {
        let name = part.split([' ', '=']).next().unwrap_or_default();
        OPTIONS.contains(name)
    };
    let mut told = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('`') {
        told += before;
        match after.split_once('`') {
            Some((part, after)) if is_option(part) => {
                told += &format!("--{part}");
                rest = after;
            }
            _ => {
                told.push('`');
                rest = after;
            }
        }
    }
    told + rest
}

#[cfg(test)]
mod tests {
    use super::with_flags;

    #[test]
    fn settings_become_options() {
        for (text, told) in [
            ("give `batch 4`, or `report-samples 0`", "give --batch 4, or --report-samples 0"),
            ("`structured=heads`", "--structured=heads"),
            ("the folder `batch size` and `it`s", "the folder --batch size and `it`s"),
            ("an `unknown` name, `force`", "an `unknown` name, --force"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(with_flags(text), told);
        }
    }
}
