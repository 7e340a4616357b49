//! The layers: a chart of error and sparsity, and the table behind it.

mod axis;
mod chart;

use crate::html::format::{counted, percent, significant};
use crate::html::headline::mean_sparsity;
use crate::html::table::{numbers, table, words};
use crate::report::LayerReport;
use maud::{Markup, html};

/// Number of the layers with the largest errors that are named above the chart.
const WORST: usize = 3;

pub(super) fn section(layers: &[LayerReport]) -> Markup {
    html! {
        @if !layers.is_empty() {
            section aria-labelledby="layers" {
                h2 #layers { "Layers" }
                p {
                    (counted(layers.len(), "layer")) ", of whose weights \
                        " (percent(mean_sparsity(layers)))
                    " are zero or gone. The error is how far a layer's output moved on the \
                     calibration data, squared "
                    "and relative to the output itself: at 0.01, a hundredth of the output's \
                     energy is wrong. "
                    (worst(layers))
                }
                div.scroll { (chart::svg(layers)) }
                (figures(layers))
            }
        }
    }
}

fn worst(layers: &[LayerReport]) -> Markup {
    let mut sorted: Vec<_> = layers.iter().filter(|layer| layer.error > 0.0).collect();
    sorted.sort_by(|a, b| b.error.total_cmp(&a.error));
    sorted.truncate(WORST);
    html! {
        @if layers.len() > WORST && sorted.len() == WORST {
            "Largest errors: "
            @for (index, layer) in sorted.iter().enumerate() {
                @if index > 0 { ", " }
                code { (layer.name) } " (" (significant(layer.error, 2)) ")"
            }
            "."
        }
    }
}

fn figures(layers: &[LayerReport]) -> Markup {
    let columns = [
        words("Layer"),
        numbers("Shape"),
        numbers("Sparsity"),
        numbers("Relative squared error"),
        numbers("Relative damping"),
        numbers("Package"),
    ];
    let row = |layer: &LayerReport| {
        html! {
            tr {
                th scope="row" { code { (layer.name) } }
                td.number { (layer.rows) " × " (layer.columns) }
                td.number { (percent(layer.sparsity)) }
                td.number { (significant(layer.error, 3)) }
                td.number { @if layer.damping == 0.0 { "none" } @else {
                    (significant(layer.damping, 2)) } }
                td.number { (layer.package) }
            }
        }
    };
    html! {
        details {
            summary { "Figures of " (counted(layers.len(), "layer")) }
            (table(&columns, layers.iter().map(row), None))
        }
    }
}
