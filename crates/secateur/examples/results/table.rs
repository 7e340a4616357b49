//! Cells to a table in Markdown.

use crate::cell::{Cell, path, read};
use crate::rows::{Row, Study};
use anyhow::{Context, Result};
use secateur_eval::{Summary, TextImage};
use std::collections::BTreeMap;
use std::path::Path;

/// A number of a cell, and the digits that are shown of it.
type Figure = (fn(&Cell) -> Result<f64>, usize);

struct Column {
    heading: String,
    /// Of the dense model, where it has one.
    dense: Option<Figure>,
    /// Shown one after another.
    figures: Vec<Figure>,
    /// Whether they are the differences to the baseline.
    paired: bool,
}

impl Column {
    /// Of a row; differences are of the seeds that the baseline has too.
    fn text(&self, row: &Cells, baseline: Option<&Cells>) -> Result<String> {
        let text = |&(figure, digits): &Figure| {
            let difference = |(seed, cell): (&u64, &Cell)| match (self.paired, baseline) {
                (true, Some(baseline)) => {
                    baseline.get(seed).map(|other| Ok(figure(cell)? - figure(other)?))
                }
                _ => Some(figure(cell)),
            };
            spread(
                &row.iter().filter_map(difference).collect::<Result<Vec<_>>>()?,
                digits,
                self.paired,
            )
        };
        Ok(self.figures.iter().map(text).collect::<Result<Vec<_>>>()?.join(" / "))
    }
}

/// The cells of a row, by seed.
type Cells = BTreeMap<u64, Cell>;

fn cells(out: &Path, seeds: u64, row: &str) -> Result<Cells> {
    // A run that was stopped has cells of fewer seeds.
    (0..seeds)
        .filter_map(|seed| read(&path(out, seed, row)).transpose().map(|cell| Ok((seed, cell?))))
        .collect()
}

fn removed(cell: &Cell) -> Result<[f64; 2]> {
    Ok(cell
        .removed
        .context("a cell of an older version, that does not tell what was removed")?
        .map(|share| 100.0 * share))
}

fn text_image(cell: &Cell) -> Result<&TextImage> {
    cell.comparison.text_image.as_ref().context("no text-image score")
}

/// Mean over the seeds, and their sample standard deviation where there are several.
pub(crate) fn spread(values: &[f64], digits: usize, signed: bool) -> Result<String> {
    if values.is_empty() {
        return Ok("-".into());
    }
    let Summary { mean, standard_deviation, .. } = Summary::of(values)?;
    let mean = if signed { format!("{mean:+.digits$}") } else { format!("{mean:.digits$}") };
    Ok(if values.len() > 1 { format!("{mean} ± {standard_deviation:.digits$}") } else { mean })
}

fn columns(choices: usize, compared: bool, sizes: bool) -> Vec<Column> {
    let figure = |value: fn(&Cell) -> Result<f64>, digits| -> Figure { (value, digits) };
    let psnr = figure(|cell| Ok(cell.comparison.psnr.mean), 2);
    let latent = figure(|cell| Ok(cell.comparison.latent_error.mean), 4);
    let column = |heading: &str, figures: &[Figure]| Column {
        heading: heading.into(),
        dense: None,
        figures: figures.into(),
        paired: false,
    };
    let scored = |heading: &str, dense, candidate| Column {
        dense: Some(dense),
        ..column(heading, &[candidate])
    };
    let mut columns = vec![
        column("PSNR dB", &[psnr]),
        column("SSIM", &[figure(|cell| Ok(cell.comparison.ssim.mean), 3)]),
        scored(
            "text-image score",
            figure(|cell| Ok(text_image(cell)?.score_reference.mean), 3),
            figure(|cell| Ok(text_image(cell)?.score_candidate.mean), 3),
        ),
        scored(
            &format!("top-1 of {choices}"),
            figure(|cell| Ok(text_image(cell)?.top1_reference), 3),
            figure(|cell| Ok(text_image(cell)?.top1_candidate), 3),
        ),
        column(
            "mean / largest layer error",
            &[
                figure(|cell| Ok(cell.mean_layer_error), 4),
                figure(|cell| Ok(cell.largest_layer_error), 3),
            ],
        ),
    ];
    if sizes {
        columns.insert(
            0,
            column(
                "parameters / MACs removed, %",
                &[figure(|cell| Ok(removed(cell)?[0]), 1), figure(|cell| Ok(removed(cell)?[1]), 1)],
            ),
        );
    }
    if compared {
        let difference = |figure| Column { paired: true, ..column("difference", &[figure]) };
        columns.splice(1..1, [difference(psnr)]);
        columns.splice(5..5, [column("latent error", &[latent]), difference(latent)]);
    }
    columns
}

/// Prints the table of the cells that there are.
pub(crate) fn print(study: &Study, out: &Path, seeds: u64) -> Result<()> {
    let read = |row: &'_ Row| Ok((row.label.clone(), cells(out, seeds, &row.name)?));
    let rows = study.groups.iter().flatten().map(read).collect::<Result<Vec<_>>>()?;
    let rows: Vec<(String, Cells)> =
        rows.into_iter().filter(|(_, cells)| !cells.is_empty()).collect();
    let Some(any) = rows.iter().flat_map(|(_, cells)| cells.values()).next() else {
        println!("no cells in {}", out.display());
        return Ok(());
    };
    let baseline = study.baseline.as_ref().map(|name| cells(out, seeds, name)).transpose()?;
    let columns = columns(text_image(any)?.choices, baseline.is_some(), study.sizes);
    let line = |label: &str, seeds: &str, texts: &[String]| {
        println!("| {label} | {seeds} | {} |", texts.join(" | "))
    };
    println!("{}\n", study.about);
    line("", "seeds", &columns.iter().map(|column| column.heading.clone()).collect::<Vec<_>>());
    println!("|{}", "---|".repeat(columns.len() + 2));
    // All rows of a seed have the same dense pictures.
    let dense: BTreeMap<u64, &Cell> =
        rows.iter().rev().flat_map(|(_, cells)| cells).map(|(s, c)| (*s, c)).collect();
    let of_dense = |column: &Column| match column.dense {
        Some((figure, digits)) => spread(
            &dense.values().map(|cell| figure(cell)).collect::<Result<Vec<_>>>()?,
            digits,
            false,
        ),
        None => Ok("-".into()),
    };
    line(
        "dense",
        &dense.len().to_string(),
        &columns.iter().map(of_dense).collect::<Result<Vec<_>>>()?,
    );
    for (label, cells) in &rows {
        let texts = columns
            .iter()
            .map(|column| column.text(cells, baseline.as_ref()))
            .collect::<Result<Vec<_>>>()?;
        line(label, &cells.len().to_string(), &texts);
    }
    Ok(())
}
