//! The plots of docs/results.md and docs/performance.md, drawn from docs/data.
//!
//! `cargo run --release --example plots` reads `docs/data/*.csv` and writes `docs/plots/*.svg`. A
//! line is a method, a panel a model; bands and bars are the sample standard deviation over the
//! seeds, where a row has more than one.

use anyhow::{Context, Result};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::Path;

/// A plot of PSNR against a column.
struct Figure {
    /// Of the data and of the plot.
    name: &'static str,
    /// The column along x, and what it is called.
    x: (&'static str, &'static str),
    /// The methods that are drawn, under their names in the data.
    methods: &'static [&'static str],
}

const FIGURES: [Figure; 4] = [
    Figure {
        name: "weights",
        x: ("amount", "share of the weights that is zero, %"),
        methods: &["obs", "wanda", "dsnot", "dsnot-hessian", "magnitude"],
    },
    Figure {
        name: "structured",
        x: ("parameters_removed", "parameters removed, %"),
        methods: &["obs", "l1", "taylor"],
    },
    Figure {
        name: "slim",
        x: ("parameters_removed", "parameters removed, %"),
        methods: &[
            "slim by influence",
            "slim by softmax",
            "slim alike everywhere",
            "obs, heads and neurons",
            "l1, heads and neurons",
        ],
    },
    Figure {
        name: "skip",
        x: ("macs_kept", "MACs kept, %"),
        methods: &[
            "what skip keeps",
            "calls evenly spread, forecast",
            "fewer steps",
            "DeepCache, forecast",
            "first-block cache, forecast",
            "random",
        ],
    },
];

/// Colours that differ for any colour vision (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#777777"];

/// Width and height of a panel's axes, and the room around them: left, top, right, bottom.
const PANEL: (f64, f64) = (232.0, 180.0);
const ROOM: (f64, f64, f64, f64) = (44.0, 44.0, 20.0, 40.0);
const PANELS_A_ROW: usize = 3;
const LEGEND_LINE: f64 = 18.0;

/// A row of the data: x, PSNR, and its standard deviation.
#[derive(Clone, Copy)]
struct Point {
    x: f64,
    psnr: f64,
    deviation: Option<f64>,
}

/// By panel, in the order of the data, and method.
type Panels = Vec<(String, BTreeMap<usize, Vec<Point>>)>;

fn main() -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    std::fs::create_dir_all(docs.join("plots"))?;
    for figure in &FIGURES {
        let data = docs.join("data").join(format!("{}.csv", figure.name));
        let panels = figure.read(&data).with_context(|| data.display().to_string())?;
        std::fs::write(docs.join(format!("plots/{}.svg", figure.name)), figure.draw(&panels)?)?;
    }
    let ratios = bars(&docs.join("data/performance.csv"))?;
    std::fs::write(docs.join("plots/performance.svg"), ratios)?;
    Ok(())
}

/// The number at the start of a cell such as `50 %`.
fn number(cell: &str) -> Option<f64> {
    cell.trim_end_matches('%').trim().parse().ok()
}

impl Figure {
    fn read(&self, path: &Path) -> Result<Panels> {
        let mut panels = Panels::new();
        for row in csv::Reader::from_path(path)?.deserialize::<HashMap<String, String>>() {
            let row = row?;
            let cell = |name: &str| row.get(name).map_or("", String::as_str);
            let method = self.methods.iter().position(|method| *method == cell("method"));
            let (Some(method), Some(x), Some(psnr)) =
                (method, number(cell(self.x.0)), number(cell("psnr")))
            else {
                continue;
            };
            let name = match cell("run") {
                "" => cell("model").to_owned(),
                run => format!("{}, {run}", cell("model")),
            };
            if panels.iter().all(|(known, _)| *known != name) {
                panels.push((name.clone(), BTreeMap::new()));
            }
            let point = Point { x, psnr, deviation: number(cell("psnr_sd")) };
            for (_, lines) in panels.iter_mut().filter(|(known, _)| *known == name) {
                lines.entry(method).or_default().push(point);
            }
        }
        let lines = panels.iter_mut().flat_map(|(_, lines)| lines.values_mut());
        lines.for_each(|points| points.sort_by(|a, b| a.x.total_cmp(&b.x)));
        Ok(panels)
    }

    fn draw(&self, panels: &Panels) -> Result<String> {
        let (width, height) = (PANEL.0 + ROOM.0 + ROOM.2, PANEL.1 + ROOM.1 + ROOM.3);
        let columns = panels.len().min(PANELS_A_ROW);
        let rows = panels.len().div_ceil(PANELS_A_ROW);
        let legend = height * rows as f64;
        let total =
            (width * columns as f64, legend + LEGEND_LINE * self.methods.len() as f64 + 8.0);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-size=\"11\" \
             font-family=\"system-ui, sans-serif\">\n<rect width=\"100%\" height=\"100%\" \
             fill=\"white\"/>\n",
            total.0, total.1
        );
        for (index, (name, lines)) in panels.iter().enumerate() {
            let (column, row) = (index % PANELS_A_ROW, index / PANELS_A_ROW);
            let (left, top) = (width * column as f64 + ROOM.0, height * row as f64 + ROOM.1);
            writeln!(svg, "<g transform=\"translate({left} {top})\">")?;
            self.panel(&mut svg, name, lines)?;
            writeln!(svg, "</g>")?;
        }
        for (index, method) in self.methods.iter().enumerate() {
            let (y, colour) = (legend + LEGEND_LINE * (index as f64 + 0.5), COLOURS[index]);
            writeln!(
                svg,
                "<path d=\"M{} {y}h24\" stroke=\"{colour}\" stroke-width=\"2.5\"/>\
                 <text x=\"{}\" y=\"{}\">{method}</text>",
                ROOM.0,
                ROOM.0 + 32.0,
                y + 4.0
            )?;
        }
        Ok(svg + "</svg>\n")
    }

    fn panel(
        &self,
        svg: &mut String,
        name: &str,
        lines: &BTreeMap<usize, Vec<Point>>,
    ) -> Result<()> {
        let points = || lines.values().flatten();
        let spread = |p: &Point| [-1.0, 1.0].map(|sign| p.psnr + sign * p.deviation.unwrap_or(0.0));
        let (xs, ys) = (Axis::of(points().map(|p| p.x)), Axis::of(points().flat_map(spread)));
        let x = |value: f64| PANEL.0 * xs.place(value);
        let y = |value: f64| PANEL.1 * (1.0 - ys.place(value));
        writeln!(svg, "<text x=\"-30\" y=\"-26\" font-weight=\"600\">{name}</text>")?;
        for tick in ys.ticks() {
            writeln!(
                svg,
                "<path d=\"M0 {0}h{1}\" stroke=\"#ddd\"/>\
                 <text x=\"-6\" y=\"{2}\" text-anchor=\"end\">{tick}</text>",
                y(tick),
                PANEL.0,
                y(tick) + 4.0
            )?;
        }
        for tick in xs.ticks() {
            let (x, bottom) = (x(tick), PANEL.1);
            writeln!(
                svg,
                "<path d=\"M{x} {bottom}v4\" stroke=\"#666\"/>\
                 <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>",
                bottom + 16.0
            )?;
        }
        let (right, bottom, label) = (PANEL.0, PANEL.1, self.x.1);
        writeln!(
            svg,
            "<path d=\"M0 0V{bottom}H{right}\" fill=\"none\" stroke=\"#666\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{label}</text>\
             <text x=\"-30\" y=\"-10\">PSNR, dB</text>",
            right / 2.0,
            bottom + 32.0
        )?;
        for (method, points) in lines {
            let colour = COLOURS[*method];
            let place =
                |p: &Point, sign: f64| (x(p.x), y(p.psnr + sign * p.deviation.unwrap_or(0.0)));
            let path = |places: &mut dyn Iterator<Item = (f64, f64)>| {
                places.map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
            };
            // A band where rows beside each other have several seeds, and a bar at each such row.
            for run in points.split(|point| point.deviation.is_none()) {
                let (over, under) = (|p: &Point| place(p, 1.0), |p: &Point| place(p, -1.0));
                let around = path(&mut run.iter().map(over).chain(run.iter().rev().map(under)));
                writeln!(svg, "<polygon points=\"{around}\" fill=\"{colour}\" opacity=\"0.2\"/>")?;
                for ((x, top), (_, bottom)) in run.iter().map(|p| (over(p), under(p))) {
                    writeln!(
                        svg,
                        "<path d=\"M{x:.1} {top:.1}V{bottom:.1}\" stroke=\"{colour}\" \
                         stroke-width=\"5\" opacity=\"0.3\"/>"
                    )?;
                }
            }
            let middle = |p: &Point| place(p, 0.0);
            let line = path(&mut points.iter().map(middle));
            writeln!(
                svg,
                "<polyline points=\"{line}\" fill=\"none\" stroke=\"{colour}\" \
                 stroke-width=\"2\"/>"
            )?;
            for (x, y) in points.iter().map(middle) {
                writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\"/>")?;
            }
        }
        Ok(())
    }
}

/// The length of a bar for a ratio of 1, the room for its name, and its height.
const BAR: (f64, f64, f64) = (240.0, 390.0, 16.0);

/// A bar for each case, a group under each other, with marks at the goals.
fn bars(path: &Path) -> Result<String> {
    let mut lines = String::new();
    let (mut group, mut y) = (String::new(), 6.0);
    let (one, left, height) = BAR;
    for row in csv::Reader::from_path(path)?.deserialize::<HashMap<String, String>>() {
        let row = row?;
        let cell = |name: &str| row.get(name).map_or("", String::as_str);
        let ratio = number(cell("ours_over_peer")).context("a ratio")?;
        if cell("group") != group {
            group = cell("group").to_owned();
            y += 24.0;
            writeln!(lines, "<text x=\"8\" y=\"{}\" font-weight=\"600\">{group}</text>", y - 6.0)?;
        }
        let (colour, middle) = (if ratio <= 1.0 { COLOURS[0] } else { COLOURS[1] }, y + 11.0);
        writeln!(
            lines,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>\
             <path d=\"M{left} {}h{:.1}\" stroke=\"{colour}\" stroke-width=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{middle}\">{ratio:.2}</text>",
            left - 6.0,
            cell("case"),
            y + height / 2.0 - 1.0,
            one * ratio,
            height - 5.0,
            left + one * ratio.max(number(cell("goal")).unwrap_or(0.0)) + 6.0
        )?;
        if let Some(goal) = number(cell("goal")) {
            let x = left + one * goal;
            writeln!(lines, "<path d=\"M{x:.1} {y}v{}\" stroke=\"#222\" stroke-width=\"2\"/>", 14)?;
        }
        y += height;
    }
    let (width, at_one) = (left + 1.75 * one, left + one);
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {}\" font-size=\"11\" \
         font-family=\"system-ui, sans-serif\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n{lines}<path d=\"M{at_one} 24V{y}\" stroke=\"#666\" \
         stroke-dasharray=\"3 3\"/>\n<text x=\"{at_one}\" y=\"16\" text-anchor=\"middle\">as \
         fast as the peer</text>\n</svg>\n",
        y + 10.0
    ))
}

/// An axis from one tick to another.
struct Axis {
    first: f64,
    step: f64,
    count: usize,
}

impl Axis {
    /// Around all values, with three to seven ticks.
    fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let (low, high) =
            (values.clone().fold(f64::MAX, f64::min), values.fold(f64::MIN, f64::max));
        let fits = |step: &&f64| (high - low) / **step <= 5.0;
        let step = [1.0, 2.0, 5.0, 10.0, 20.0].iter().find(fits).copied().unwrap_or(50.0);
        let first = (low / step).floor() * step;
        let count = ((high - first) / step).ceil().max(1.0) as usize;
        Self { first, step, count }
    }

    /// Where a value lies, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        (value - self.first) / (self.step * self.count as f64)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + use<> {
        let (first, step) = (self.first, self.step);
        (0..=self.count).map(move |index| first + step * index as f64)
    }
}
