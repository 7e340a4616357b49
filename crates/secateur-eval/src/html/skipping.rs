//! The chart of the units that are computed at each call, and a comparison with plain rules.

use crate::html::format::{counted, fixed, percent};
use crate::html::table::{numbers, table, words};
use crate::report::{SkippingReport, WayReport};
use maud::{Markup, html};

/// Width of the unit names in the chart, in the units of the SVG.
const NAMES: f64 = 170.0;
const WIDTH: f64 = 900.0;
const ROW: f64 = 16.0;
const TOP: f64 = 18.0;

pub(super) fn section(skipping: Option<&SkippingReport>) -> Markup {
    html! {
        @if let Some(skipping) = skipping {
            section aria-labelledby="skipping" {
                h2 #skipping { "What is computed" }
                p {
                    "A column is a call of the denoiser, the noisiest first; a row is a part of \
                     it, the first at the top. "
                    "Where a field is filled the part is computed; elsewhere "
                    @if skipping.kind == "residual" { "what it added to its input" } @else { "its \
                        output" }
                    @match skipping.order {
                        0 => " when it was last computed is used again",
                        order => { " is forecast from the last " (order + 1) " times that it was \
                            computed" }
                    }
                    ", or nothing reads it. Of the multiply-accumulates of the run "
                    (percent(skipping.kept)) " are left."
                }
                div.scroll { (chart(skipping)) }
                (ways(&skipping.ways))
            }
        }
    }
}

fn chart(skipping: &SkippingReport) -> Markup {
    let (calls, units) = (skipping.computed.len(), skipping.units.len());
    let height = TOP + ROW * units as f64 + 6.0;
    let column = (WIDTH - NAMES - 8.0) / calls.max(1) as f64;
    let label =
        format!("{} by {}, filled where computed", counted(units, "part"), counted(calls, "call"));
    let x = |call: usize| NAMES + column * call as f64;
    // Narrow fields have no gap to be seen.
    let gap = (0.12 * column).min(1.0);
    let every = [1, 2, 5, 10, 20, 50, 100]
        .into_iter()
        .find(|every| column * *every as f64 > 28.0)
        .unwrap_or(200);
    html! {
        svg.chart viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label=(label) {
            @for call in (0..calls).step_by(every) {
                text.tick x=(format!("{:.1}", x(call) + 0.5 * column)) y="12" { (call + 1) }
            }
            @for (unit, name) in skipping.units.iter().enumerate() {
                @let y = TOP + ROW * unit as f64;
                g {
                    text.name x=(NAMES - 8.0) y=(y + 12.0) { (name) }
                    @let width = format!("{:.1}", column * calls as f64);
                    rect.band x=(NAMES) y=(y + 1.0) width=(width) height=(ROW - 2.0) {}
                    @for (call, row) in skipping.computed.iter().enumerate() {
                        @if row.get(unit) == Some(&true) {
                            @let x = format!("{:.2}", x(call));
                            @let width = format!("{:.2}", column - gap);
                            rect.dot x=(x) y=(y + 1.0) width=(width) height=(ROW - 2.0) {}
                        }
                    }
                }
            }
        }
    }
}

fn ways(ways: &[WayReport]) -> Markup {
    let scored = ways.iter().any(|way| way.score.is_some());
    let mut columns = vec![words("Way")];
    columns.extend(["MACs left", "Times faster", "PSNR dB", "SSIM", "Latent error"].map(numbers));
    if scored {
        columns.extend(["Text-image score", "Top-1"].map(numbers));
    }
    let row = |way: &WayReport| {
        html! {
            tr {
                th scope="row" { (way.name) }
                td.number { (percent(way.kept)) }
                td.number { @if let Some(faster) = way.speed_up { (fixed(faster, 2)) } }
                td.number { (fixed(way.psnr, 2)) }
                td.number { (fixed(way.ssim, 3)) }
                td.number { (fixed(way.latent_error, 3)) }
                @if scored {
                    td.number { @if let Some(score) = way.score { (fixed(score, 3)) } }
                    td.number { @if let Some(top1) = way.top1 { (percent(top1)) } }
                }
            }
        }
    };
    html! {
        @if !ways.is_empty() {
            p { "Other ways to no more than the share of the work that was asked for, each against \
                the pictures of the whole run:" }
            (table(&columns, ways.iter().map(row), None))
        }
    }
}
