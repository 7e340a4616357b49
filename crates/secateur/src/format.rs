//! Numbers and tables for people.

use anyhow::{Context, Result};
use serde::Serialize;
use std::borrow::Cow;
use std::io::Write;

/// Prints lines on standard output; a reader that went away ends the output quietly.
pub(crate) fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{}", printable(text)) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("standard output")
        }
        _ => Ok(()),
    }
}

/// A text that cannot steer a terminal, whatever names of files and tensors it holds: control
/// characters but the ends of lines are escaped.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\n';
    if !text.contains(steers) {
        return text.into();
    }
    let escaped = |c: char| if steers(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect::<String>().into()
}

/// Prints a value as JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

/// 12345678 as "12.3 M".
pub(crate) fn count(number: u64) -> String {
    let (scale, suffix) = match number {
        1_000_000_000_000.. => (1e12, " T"),
        1_000_000_000.. => (1e9, " G"),
        1_000_000.. => (1e6, " M"),
        1_000.. => (1e3, " k"),
        _ => return number.to_string(),
    };
    format!("{:.2}{suffix}", number as f64 / scale)
}

/// Bytes in binary units.
pub(crate) fn bytes(number: u64) -> String {
    bytesize::ByteSize(number).display().iec().to_string()
}

/// Rows in aligned columns: the first and those without a header to the left, the others to the
/// right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let all = || {
        std::iter::once(header.iter().map(|h| (*h).to_owned()).collect())
            .chain(rows.iter().cloned())
    };
    let mut widths = vec![0; header.len()];
    for row in all() {
        let row: Vec<String> = row;
        for (width, cell) in widths.iter_mut().zip(&row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let lines = all().map(|row: Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| {
            match i == 0 || header[i].is_empty() {
                true => format!("{cell:<width$}"),
                false => format!("{cell:>width$}"),
            }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The weights of the steps, the noisiest first.
pub(crate) fn spelled(step_weights: &[f64]) -> String {
    step_weights.iter().map(|weight| format!("{weight:.3}")).collect::<Vec<_>>().join(" ")
}
