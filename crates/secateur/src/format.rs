//! Numbers, tables and commands as text.

/// Formats a count: 12345678 as "12.3 M".
pub fn count(number: u64) -> String {
    let (scale, suffix) = match number {
        1_000_000_000_000.. => (1e12, " T"),
        1_000_000_000.. => (1e9, " G"),
        1_000_000.. => (1e6, " M"),
        1_000.. => (1e3, " k"),
        _ => return number.to_string(),
    };
    format!("{:.2}{suffix}", number as f64 / scale)
}

/// Formats bytes in binary units.
pub fn bytes(number: u64) -> String {
    bytesize::ByteSize(number).display().iec().to_string()
}

/// Formats rows in aligned columns. The first column and those without a header are aligned to the
/// left, the others to the right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
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

/// Formats the weights of the steps, the noisiest step first.
pub fn spelled(step_weights: &[f64]) -> String {
    step_weights.iter().map(|weight| format!("{weight:.3}")).collect::<Vec<_>>().join(" ")
}

/// Quotes a word for a shell.
#[must_use]
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
