//! The pictures side by side, and the table of the prompts.

use crate::html::format::{counted, fixed};
use crate::html::table::{numbers, table, words};
use crate::metrics::{psnr_capped, ssim};
use crate::picture::{Picture, encode_png};
use crate::report::{PromptRow, Report};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::imageops::{self, FilterType};
use maud::{Markup, html};

/// Pictures of one prompt by two models, from the same noise.
#[derive(Debug, Clone, PartialEq)]
pub struct PicturePair {
    /// The prompt.
    pub prompt: String,
    /// The picture of the reference model.
    pub reference: Picture,
    /// The picture of the candidate model.
    pub candidate: Picture,
}

/// Pictures with a longer side, in pixels, are scaled down for the page.
const LARGEST_SHOWN: u32 = 512;
/// Pictures up to this side, in pixels, are scaled up pixel by pixel and set in narrow columns.
const SMALL: usize = 128;

pub(super) fn section(report: &Report, pairs: &[PicturePair]) -> Markup {
    let rows = report.comparison.as_ref().map_or(&[][..], |comparison| &comparison.prompts);
    let (reference, candidate) =
        report.comparison.as_ref().map_or(("reference", "candidate"), |comparison| {
            (&comparison.reference, &comparison.candidate)
        });
    let small =
        pairs.iter().all(|pair| pair.reference.width().max(pair.reference.height()) <= SMALL);
    html! {
        @if !pairs.is_empty() || !rows.is_empty() {
            section aria-labelledby="pictures" {
                h2 #pictures { "Pictures" }
                @if !pairs.is_empty() {
                    p {
                        "Left " strong { (reference) } ", right " strong { (candidate) }
                        ", from the same noise. The order is that of the prompts, not best first. "
                        (extent(pairs, rows))
                    }
                    div.pairs.small[small] { @for pair in pairs { (figure(pair, reference,
                        candidate)) } }
                }
                @if !rows.is_empty() { (figures(rows)) }
            }
        }
    }
}

/// Says how many of the prompts are shown, and whether the pictures were scaled down.
fn extent(pairs: &[PicturePair], rows: &[PromptRow]) -> String {
    let shown = if pairs.len() < rows.len() {
        format!("{} of {} are shown", pairs.len(), counted(rows.len(), "prompt"))
    } else {
        format!("{} shown", counted(pairs.len(), "pair"))
    };
    let largest = pairs
        .iter()
        .flat_map(|pair| [&pair.reference, &pair.candidate])
        .map(|p| p.width().max(p.height()))
        .max();
    if largest.is_some_and(|side| side > LARGEST_SHOWN as usize) {
        format!(
            "{shown}, reduced to {LARGEST_SHOWN} pixels; the metrics are those of the full size."
        )
    } else {
        format!("{shown}.")
    }
}

fn figure(pair: &PicturePair, reference: &str, candidate: &str) -> Markup {
    html! {
        figure {
            div.pair {
                (picture(&pair.reference, &format!("{}, by {reference}", pair.prompt)))
                (picture(&pair.candidate, &format!("{}, by {candidate}", pair.prompt)))
            }
            figcaption {
                span.prompt { (pair.prompt) }
                span.metrics { (metrics(pair)) }
            }
        }
    }
}

fn metrics(pair: &PicturePair) -> String {
    let Ok(noise) = psnr_capped(&pair.reference, &pair.candidate) else {
        return "not comparable: the sizes differ".into();
    };
    // SSIM has no value for a picture smaller than its window; PSNR still has.
    let similarity = ssim(&pair.reference, &pair.candidate)
        .map_or(String::new(), |value| format!(", SSIM {}", fixed(value, 3)));
    format!("PSNR {} dB{similarity}", fixed(noise, 1))
}

fn picture(picture: &Picture, alternative: &str) -> Markup {
    let mut pixels = picture.to_rgb8();
    let (width, height) = pixels.dimensions();
    let longest = width.max(height);
    if longest > LARGEST_SHOWN {
        let shrunk = |side: u32| (side * LARGEST_SHOWN / longest).max(1);
        pixels = imageops::resize(&pixels, shrunk(width), shrunk(height), FilterType::Triangle);
    }
    let source = format!("data:image/png;base64,{}", STANDARD.encode(encode_png(&pixels)));
    let small = picture.width().max(picture.height()) <= SMALL;
    html! {
        img.pixelated[small] src=(source) width=(pixels.width()) height=(pixels.height())
            alt=(alternative);
    }
}

fn figures(rows: &[PromptRow]) -> Markup {
    let scored =
        rows.iter().any(|row| row.score_reference.is_some() || row.score_candidate.is_some());
    let score = |value: Option<f64>| value.map_or(String::from("-"), |value| fixed(value, 3));
    let mut columns = vec![words("Prompt")];
    columns.extend(["PSNR (dB)", "SSIM", "Latent error"].map(numbers));
    if scored {
        columns.extend(["Score, reference", "Score, candidate"].map(numbers));
    }
    let row = |row: &PromptRow| {
        html! {
            tr {
                th scope="row" { (row.prompt) }
                td.number { (fixed(row.psnr, 1)) }
                td.number { (fixed(row.ssim, 3)) }
                td.number { (fixed(row.latent_error, 3)) }
                @if scored {
                    td.number { (score(row.score_reference)) }
                    td.number { (score(row.score_candidate)) }
                }
            }
        }
    };
    html! {
        details {
            summary { "Figures of " (counted(rows.len(), "prompt")) }
            (table(&columns, rows.iter().map(row), None))
        }
    }
}
