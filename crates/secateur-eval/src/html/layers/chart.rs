//! The chart of the layers, one row each: the name, the error on a logarithmic axis, the sparsity.

use crate::html::format::{percent, significant};
use crate::html::layers::axis::{LogAxis, Tick};
use crate::report::LayerReport;
use maud::{Markup, html};

/// Width of the chart in the units of the SVG, which are CSS pixels if the page is wide enough.
const WIDTH: f64 = 1080.0;
/// Height of a row, in the same units.
const ROW: f64 = 16.0;
/// Height of the space for the axis labels above and below the rows.
const MARGIN: f64 = 46.0;
/// Width of a character in the monospaced names, estimated generously.
const CHARACTER: f64 = 6.7;
/// Names with more characters are shortened in the middle. The names of SDXL fit.
const LONGEST_NAME: usize = 64;
/// Number of characters kept at the beginning of a shortened name, which has the block's number.
const BEGINNING: usize = 18;
/// Width of the space for the figure beside a mark.
const FIGURE: f64 = 62.0;
/// Width of the sparsity bars at 100 %.
const SPARSITY: f64 = 170.0;

/// Horizontal positions of the panels.
struct Panels {
    names: f64,
    error: f64,
    error_width: f64,
    sparsity: f64,
}

pub(super) fn svg(layers: &[LayerReport]) -> Markup {
    let longest = layers.iter().map(|layer| layer.name.chars().count()).max().unwrap_or(0);
    let names = longest.min(LONGEST_NAME) as f64 * CHARACTER + 8.0;
    let error = names + 12.0;
    let sparsity = WIDTH - FIGURE - SPARSITY;
    let panels = Panels { names, error, error_width: sparsity - 24.0 - FIGURE - error, sparsity };
    let axis = LogAxis::over(layers.iter().map(|layer| layer.error));
    let bottom = MARGIN + layers.len() as f64 * ROW;
    let height = bottom + MARGIN;
    html! {
        svg.chart viewBox=(format!("0 0 {WIDTH} {height}")) role="img"
            aria-label=(format!("Relative squared error and sparsity of {} layers; the table below \
                holds the figures", layers.len())) {
            (bands(layers))
            (grid(&panels, &axis.ticks(), bottom))
            @for (index, layer) in layers.iter().enumerate() {
                (row(layer, MARGIN + (index as f64 + 0.5) * ROW, &panels, &axis))
            }
        }
    }
}

/// Returns the block of a layer: its name up to the first number. Later numbers may belong to the
/// layer (`to_out.0`).
fn block(name: &str) -> &str {
    let mut end = 0;
    for part in name.split('.') {
        end += part.len();
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
            return &name[..end];
        }
        end += 1;
    }
    ""
}

/// Draws a tinted background behind every other block, to make rows easy to follow.
fn bands(layers: &[LayerReport]) -> Markup {
    let groups: Vec<_> =
        layers.chunk_by(|a, b| block(&a.name) == block(&b.name)).map(<[_]>::len).collect();
    let starts =
        groups.iter().scan(0, |start, &length| Some(std::mem::replace(start, *start + length)));
    html! {
        @for (start, length) in starts.zip(&groups).skip(1).step_by(2) {
            rect.band x="0" width=(WIDTH) y=(MARGIN + start as f64 * ROW) height=(*length as f64 *
                ROW) {}
        }
    }
}

/// Draws grid lines, and the labels of both axes above and below the rows, as a long chart is read
/// from either end.
fn grid(panels: &Panels, ticks: &[Tick], bottom: f64) -> Markup {
    let shares = [0.0, 0.5, 1.0];
    let error_centre = panels.error + panels.error_width / 2.0;
    let sparsity_centre = panels.sparsity + SPARSITY / 2.0;
    html! {
        @for tick in ticks {
            @let x = number(panels.error + tick.place * panels.error_width);
            line.grid.minor[tick.label.is_empty()] x1=(x) x2=(x) y1=(MARGIN) y2=(bottom) {}
        }
        @for share in shares {
            @let x = number(panels.sparsity + share * SPARSITY);
            line.grid x1=(x) x2=(x) y1=(MARGIN) y2=(bottom) {}
        }
        @for (title, labels) in [(MARGIN - 28.0, MARGIN - 8.0), (bottom + 36.0, bottom + 16.0)] {
            text.axis x=(number(error_centre)) y=(title) { "relative squared error (log scale, no \
                unit)" }
            text.axis x=(number(sparsity_centre)) y=(title) { "sparsity (% of weights)" }
            @for tick in ticks.iter().filter(|tick| !tick.label.is_empty()) {
                text.tick x=(number(panels.error + tick.place * panels.error_width)) y=(labels) {
                    (tick.label) }
            }
            @for share in shares {
                text.tick x=(number(panels.sparsity + share * SPARSITY)) y=(labels) { (share *
                    100.0) }
            }
        }
    }
}

fn row(layer: &LayerReport, y: f64, panels: &Panels, axis: &LogAxis) -> Markup {
    let figure = significant(layer.error, 2);
    let sparsity = percent(layer.sparsity);
    let share = if layer.sparsity.is_finite() { layer.sparsity.clamp(0.0, 1.0) } else { 0.0 };
    let x = panels.error + axis.place(layer.error).unwrap_or(0.0) * panels.error_width;
    let text = y + 3.5;
    html! {
        g {
            title { (layer.name) ": " (layer.rows) " × " (layer.columns) ", error " (figure) ", \
                sparsity " (sparsity) }
            text.name x=(number(panels.names)) y=(text) { (shortened(&layer.name)) }
            @if axis.place(layer.error).is_some() {
                line.stem x1=(number(panels.error)) x2=(number(x)) y1=(y) y2=(y) {}
                circle.dot cx=(number(x)) cy=(y) r="4" {}
            }
            text.figure x=(number(x + 9.0)) y=(text) { (figure) }
            rect.bar x=(panels.sparsity) y=(y - 4.0) width=(number(share * SPARSITY)) height="8" {}
            text.figure x=(number(panels.sparsity + share * SPARSITY + 7.0)) y=(text) { (sparsity) }
        }
    }
}

fn shortened(name: &str) -> String {
    let count = name.chars().count();
    if count <= LONGEST_NAME {
        return name.to_owned();
    }
    // The title of the row holds the whole name.
    let (beginning, end) =
        (name.chars().take(BEGINNING), name.chars().skip(count - (LONGEST_NAME - BEGINNING - 1)));
    beginning.chain(['…']).chain(end).collect()
}

/// Formats a coordinate to a tenth of a pixel.
fn number(value: f64) -> String {
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_layers() {
        assert_eq!(block("transformer_blocks.3.attn.to_q"), "transformer_blocks.3");
        assert_eq!(block("transformer_blocks.3.attn.to_out.0"), "transformer_blocks.3");
        assert_eq!(block("transformer_blocks.3.ff.net.0.proj"), "transformer_blocks.3");
        assert_eq!(
            block("down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2"),
            "down_blocks.1"
        );
        assert_eq!(block("proj_out"), "");
    }

    #[test]
    fn long_names_lose_their_middle() {
        let name = format!("down_blocks.2.{}.to_q", "a".repeat(80));
        let short = shortened(&name);
        assert!(short.starts_with("down_blocks.2.aaaa…a") && short.ends_with(".to_q"), "{short}");
        assert_eq!(short.chars().count(), LONGEST_NAME);
        assert_eq!(shortened("proj_out"), "proj_out");
    }
}
