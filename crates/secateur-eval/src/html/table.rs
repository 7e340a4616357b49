//! A table of figures.

use maud::{Markup, html};

/// The heading of a column of words.
pub(super) fn words(heading: &str) -> Markup {
    html! { th scope="col" { (heading) } }
}

/// The heading of a column of numbers.
pub(super) fn numbers(heading: &str) -> Markup {
    html! { th.number scope="col" { (heading) } }
}

/// A bar for a share, of `width` per cent of the cell where it is whole, and the share in per cent.
pub(super) fn share(share: f64, width: f64) -> Markup {
    html! {
        td { span.share style=(format!("width:{:.1}%", share * width)) {}
            (format!("{:.0} %", share * 100.0)) }
    }
}

/// A table, which scrolls where it is too wide.
pub(super) fn table(
    columns: &[Markup],
    rows: impl IntoIterator<Item = Markup>,
    foot: Option<Markup>,
) -> Markup {
    html! {
        div.scroll {
            table {
                thead { tr { @for column in columns { (column) } } }
                tbody { @for row in rows { (row) } }
                @if let Some(foot) = foot { tfoot { (foot) } }
            }
        }
    }
}
