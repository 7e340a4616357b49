//! The report as one self-contained page: no network, no scripts, charts as inline SVG.

mod cards;
mod format;
mod table;
mod headline;
mod layers;
mod pictures;
mod skipping;
mod tables;

use crate::report::Report;
use maud::{DOCTYPE, Markup, PreEscaped, html as markup};
pub use pictures::PicturePair;

/// Forbids the page to load anything from outside the file.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'";

/// Renders the report as an HTML page in one file. `pictures` are shown in their order, which
/// should be the order of the prompts. The metrics under a pair are computed from that pair.
pub fn html(report: &Report, pictures: &[PicturePair]) -> String {
    markup! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (report.title) }
                style { (PreEscaped(include_str!("html/style.css"))) }
            }
            body {
                header {
                    h1 { (report.title) }
                    p.lead { (headline::sentence(report)) }
                }
                main {
                    (cards::section(report))
                    (pictures::section(report, pictures))
                    (skipping::section(report.skipping.as_ref()))
                    (tables::groups(&report.groups))
                    (layers::section(&report.layers))
                    (tables::models(&report.models))
                    (tables::stages(report))
                    (tables::run(report))
                    (notes(&report.notes))
                }
            }
        }
    }
    .into_string()
}

fn notes(notes: &[String]) -> Markup {
    markup! {
        @if !notes.is_empty() {
            section aria-labelledby="notes" {
                h2 #notes { "Notes" }
                ul.notes { @for note in notes { li { (note) } } }
            }
        }
    }
}
