//! What the rows of a table look like: the first pictures of a seed, a strip a row.

use anyhow::{Result, bail};
use image::{GenericImage, Rgb, RgbImage};
use secateur_eval::Picture;
use std::path::{Path, PathBuf};

const PICTURES: usize = 8;
const GAP: u32 = 4;

fn path(out: &Path, seed: u64, row: &str) -> PathBuf {
    out.join(format!("seed{seed}-{row}.png"))
}

/// Saves the strip of a row.
pub(crate) fn save(pictures: &[Picture], out: &Path, seed: u64, row: &str) -> Result<()> {
    let pictures = pictures.iter().take(PICTURES);
    let pictures =
        pictures.map(|picture| Ok(image::load_from_memory(&picture.to_png())?.to_rgb8()));
    let pictures = pictures.collect::<Result<Vec<_>>>()?;
    save_whole(&grid(&pictures, pictures.len() as u32)?, &path(out, seed, row))
}

/// An interrupted run leaves no half of a picture.
fn save_whole(picture: &RgbImage, to: &Path) -> Result<()> {
    let partial = to.with_extension("partial.png");
    picture.save(&partial)?;
    Ok(std::fs::rename(partial, to)?)
}

/// Puts the strips of seed 0 below each other: the dense model's, and those of some rows in the
/// order of the table, which has the rows `known`.
pub(crate) fn stack(known: &[&str], rows: &[String], out: &Path, to: &Path) -> Result<()> {
    if let Some(row) = rows.iter().find(|row| !known.contains(&row.as_str())) {
        bail!("no row {row:?}; there are {}", known.join(", "));
    }
    let chosen = known.iter().copied().filter(|row| rows.iter().any(|name| name == row));
    let strips = std::iter::once("dense").chain(chosen);
    let strips = strips
        .map(|row| Ok(image::open(path(out, 0, row))?.to_rgb8()))
        .collect::<Result<Vec<_>>>()?;
    save_whole(&grid(&strips, 1)?, to)
}

/// Pictures of one size, in a row or below each other, on white.
fn grid(pictures: &[RgbImage], columns: u32) -> Result<RgbImage> {
    let Some((width, height)) = pictures.first().map(RgbImage::dimensions) else {
        bail!("there are no pictures")
    };
    let rows = (pictures.len() as u32).div_ceil(columns);
    let extent = |count: u32, side: u32| count * (side + GAP) - GAP;
    let mut sheet =
        RgbImage::from_pixel(extent(columns, width), extent(rows, height), Rgb([255; 3]));
    for (place, picture) in (0..).zip(pictures) {
        sheet.copy_from(
            picture,
            place % columns * (width + GAP),
            place / columns * (height + GAP),
        )?;
    }
    Ok(sheet)
}
