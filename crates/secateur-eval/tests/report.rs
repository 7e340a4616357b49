//! The report: its JSON, its page, and the files it leaves.

use secateur_eval::{
    Comparison, Error, GroupReport, LayerReport, ModelSummary, Picture, PicturePair, PromptRow,
    Report, SkippingReport, Stage, Summary, TextImage, html, psnr_capped, ssim,
};
use serde_json::json;

/// A picture with one of two smooth patterns; large enough for SSIM.
fn picture(phase: f32) -> Picture {
    let pixels = (0..12 * 12 * 3).map(|i| 0.5 + 0.4 * (i as f32 * 0.1 + phase).sin()).collect();
    Picture::new(12, 12, pixels).unwrap()
}

fn pairs() -> Vec<PicturePair> {
    vec![
        PicturePair {
            prompt: "<b>\"x\"&".into(),
            reference: picture(0.0),
            candidate: picture(0.5),
        },
        PicturePair {
            prompt: "red apple".into(),
            reference: picture(0.2),
            candidate: picture(0.2),
        },
    ]
}

fn layer(name: &str, sparsity: f64, error: f64, damping: f64, package: usize) -> LayerReport {
    LayerReport { name: name.into(), rows: 384, columns: 96, sparsity, error, damping, package }
}

fn report() -> Report {
    let settings =
        json!({ "method": "obs-diff", "sparsity": 0.5, "prompts": ["a <i>", "b"], "refine": true });
    let prompts = vec![
        PromptRow {
            prompt: "<b>\"x\"&".into(),
            psnr: 18.5,
            ssim: 0.75,
            latent_error: 0.375,
            score_reference: Some(0.3125),
            score_candidate: Some(0.25),
        },
        PromptRow {
            prompt: "red apple".into(),
            psnr: 100.0,
            ssim: 1.0,
            latent_error: 0.0,
            score_reference: None,
            score_candidate: None,
        },
    ];
    let of = |metric: fn(&PromptRow) -> f64| {
        Summary::of(&prompts.iter().map(metric).collect::<Vec<_>>()).unwrap()
    };
    Report {
        format_version: Report::FORMAT_VERSION,
        title: "emoji & friends, <half> the weights".into(),
        command: "secateur prune models/emoji --sparsity 0.5 && echo '<done>'".into(),
        secateur_version: "0.1.0".into(),
        seed: 42,
        settings: settings.as_object().unwrap().clone(),
        models: vec![
            ModelSummary {
                name: "dense".into(),
                parameters: 110_592,
                zeros: 0,
                macs: 2_000_000,
                file_bytes: 221_184,
                step_seconds: Some(0.5),
            },
            ModelSummary {
                name: "pruned".into(),
                parameters: 110_592,
                zeros: 36_864,
                macs: 2_000_000,
                file_bytes: 221_184,
                step_seconds: Some(0.4),
            },
        ],
        comparison: Some(Comparison {
            reference: "dense".into(),
            candidate: "pruned".into(),
            steps: 25,
            guidance: 4.0,
            psnr: of(|row| row.psnr),
            ssim: of(|row| row.ssim),
            latent_error: of(|row| row.latent_error),
            text_image: Some(TextImage {
                model: "emoji-clip".into(),
                score_reference: Summary::of(&[0.3125]).unwrap(),
                score_candidate: Summary::of(&[0.25]).unwrap(),
                top1_reference: 0.5,
                top1_candidate: 0.25,
                choices: 4,
            }),
            prompts,
        }),
        layers: vec![
            layer("blocks.0.attn.to_q", 0.5, 0.012_5, 0.01, 0),
            layer("blocks.0.ff.net.2", 0.5, 0.25, 0.01, 0),
            layer("blocks.1.attn.to_q", 0.0, 0.0, 0.0, 1),
        ],
        stages: vec![
            Stage {
                name: "calibrate".into(),
                seconds: 75.0,
                floor_seconds: Some(50.0),
                peak_bytes: 1 << 30,
            },
            Stage { name: "solve".into(), seconds: 25.0, floor_seconds: None, peak_bytes: 3 << 29 },
        ],
        peak_bytes: 3 << 29,
        groups: Vec::new(),
        skipping: None,
        notes: vec!["Ran on 2 threads & a <small> machine.".into()],
    }
}

/// A line a tag, the style and the encoded pictures left out: what a reader of the snapshot wants
/// to see.
fn readable(page: &str) -> String {
    let (before, rest) = page.split_once("<style>").unwrap();
    let (_, after) = rest.split_once("</style>").unwrap();
    let mut parts = after.split("data:image/png;base64,");
    let mut text = format!("{before}<style></style>{}", parts.next().unwrap());
    for part in parts {
        text += "data:image/png;base64,[picture]";
        text += &part[part.find('"').unwrap()..];
    }
    text.replace("><", ">\n<")
}

#[test]
fn page_of_a_small_report() {
    insta::assert_snapshot!(readable(&html(&report(), &pairs())));
}

#[test]
fn json_of_a_small_report() {
    insta::assert_snapshot!(report().to_json());
}

#[test]
fn what_users_write_is_escaped() {
    let page = html(&report(), &pairs());
    for raw in ["<b>", "<half>", "<done>", "<small>", "a <i>", "\"x\""] {
        assert!(!page.contains(raw), "{raw} is not escaped");
    }
    assert!(page.contains("&lt;b&gt;&quot;x&quot;&amp;"));
}

#[test]
fn page_loads_nothing_from_elsewhere() {
    let page = html(&report(), &pairs());
    for reference in ["http://", "https://", "<script", "<link", "@import", "url("] {
        assert!(!page.contains(reference), "{reference}");
    }
}

#[test]
fn figures_under_a_pair_are_those_of_the_metrics() {
    let pairs = pairs();
    let page = html(&report(), &pairs);
    for pair in &pairs {
        let noise = psnr_capped(&pair.reference, &pair.candidate).unwrap();
        let similarity = ssim(&pair.reference, &pair.candidate).unwrap();
        assert!(page.contains(&format!("PSNR {noise:.1} dB, SSIM {similarity:.3}")));
    }
}

#[test]
fn pictures_of_any_size_are_shown() {
    let flat = |width: usize, height: usize| {
        Picture::new(width, height, vec![0.5; width * height * 3]).unwrap()
    };
    let pair = |reference, candidate| PicturePair { prompt: "p".into(), reference, candidate };
    let pairs = [
        pair(flat(1, 1), flat(1, 1)),
        pair(flat(64, 64), flat(32, 64)),
        pair(flat(1200, 600), flat(1200, 600)),
    ];
    let page = html(&report(), &pairs);
    assert!(page.contains("PSNR 100.0 dB<"), "SSIM has no value for one pixel");
    assert!(page.contains("the sizes differ"));
    assert!(page.contains("width=\"512\" height=\"256\""));
    assert!(!page.contains("width=\"1200\""));
}

#[test]
fn an_empty_report_is_a_page_too() {
    let mut report = report();
    report.comparison = None;
    report.models.clear();
    report.layers.clear();
    report.notes.clear();
    report.settings.clear();
    report.stages.truncate(1);
    let page = html(&report, &[]);
    assert!(page.contains("No model was changed or compared in 1 stage."));
    for heading in ["Key figures", "Pictures", "Layers", "Notes"] {
        assert!(!page.contains(heading), "{heading}");
    }
}

#[test]
fn removed_structure_is_not_called_zeros() {
    let mut report = report();
    report.models[1].zeros = 0;
    report.models[1].parameters = 82_944;
    report.models[1].macs = 1_500_000;
    let page = html(&report, &[]);
    assert!(page.contains(
        "Half of the weights of 2 layers have been removed; pruned holds 25.0 % \
        fewer parameters and does 25.0 % less arithmetic than dense"
    ));
}

#[test]
fn numbers_that_are_not_finite_do_not_break_the_page() {
    let mut report = report();
    report.layers[0].error = f64::NAN;
    report.layers[1].error = f64::INFINITY;
    report.layers[2].sparsity = f64::NAN;
    report.comparison.as_mut().unwrap().psnr.mean = f64::NAN;
    report.stages[0].seconds = f64::NAN;
    let page = html(&report, &[]);
    assert!(page.contains("not a number"));
    assert!(!page.contains("=\"NaN") && !page.contains("=\"inf"), "a coordinate is not a number");
}

#[test]
fn json_round_trip() {
    let report = report();
    assert_eq!(Report::from_json(&report.to_json()).unwrap(), report);
}

#[test]
fn json_keeps_values_that_are_not_finite_as_nan() {
    let mut report = report();
    report.layers[0].error = f64::NAN;
    report.layers[1].error = f64::INFINITY;
    let read = Report::from_json(&report.to_json()).unwrap();
    assert!(read.layers[0].error.is_nan() && read.layers[1].error.is_nan());
}

#[test]
fn json_of_another_version_is_refused() {
    let json = report().to_json().replace("\"format_version\": 1", "\"format_version\": 2");
    assert!(matches!(Report::from_json(&json), Err(Error::FormatVersion { found: 2, known: 1 })));
    assert!(matches!(Report::from_json("{}"), Err(Error::Json { .. })));
    assert!(matches!(Report::from_json("[1"), Err(Error::Json { .. })));
}

#[test]
fn write_leaves_two_files_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    // Twice: an older report is replaced.
    for _ in 0..2 {
        report().write(&pairs(), folder.path()).unwrap();
    }
    let mut names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["report.html", "report.json"]);
    let json = std::fs::read_to_string(folder.path().join("report.json")).unwrap();
    assert_eq!(Report::from_json(&json).unwrap(), report());
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert_eq!(page, html(&report(), &pairs()));
}

#[test]
fn write_says_which_path_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("runs/7");
    let error = report().write(&[], &missing).unwrap_err();
    assert!(matches!(error, Error::NotAFolder { .. }));
    assert!(error.to_string().contains("runs/7"), "{error}");

    // A folder where a file belongs cannot be replaced by a file.
    std::fs::create_dir(folder.path().join("report.json")).unwrap();
    let error = report().write(&[], folder.path()).unwrap_err().to_string();
    assert!(error.contains("report.json"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the temporary file is gone");
}

#[test]
fn heads_and_neurons_that_went_are_told() {
    let group = |name: &str, kind: &str, count, removed| GroupReport {
        name: name.into(),
        kind: kind.into(),
        count,
        removed,
        error: None,
        module_error: None,
    };
    let groups = vec![
        group("blocks.1.attn", "heads", 8, 2),
        group("blocks.1.ff", "neurons", 1024, 304),
        group("blocks.2.ff", "neurons", 1024, 512),
    ];
    let mut whole = groups.clone();
    whole[0].removed = 0;
    let page = html(&Report { groups: whole, ..report() }, &[]);
    assert!(page.contains("816 of 2048 neurons of 2 modules have been removed"), "{page}");
    let page = html(&Report { groups, ..report() }, &[]);
    assert!(
        page.contains("2 of 8 heads and 816 of 2048 neurons of 3 modules have been removed"),
        "{page}"
    );
    assert!(
        page.contains("Heads and neurons") && page.contains("blocks.2.ff") && page.contains("50 %")
    );
    assert!(!html(&report(), &[]).contains("Heads and neurons"));
}

/// The chart is 900 wide, 170 of them for names and 8 for a margin; a row is 16 high, below 18 for
/// numbers and above a margin of 6.
#[test]
fn what_is_computed_is_drawn_to_scale() {
    // Calls, numbers over them, where the first is, where the last call's field begins, and how
    // wide a field is.
    for (calls, numbers, first, last, field) in [
        (8, 8, "215.1", "801.75", "89.25"),
        (40, 20, "179.0", "873.95", "17.05"),
        (300, 15, "171.2", "889.59", "2.12"),
    ] {
        let mut computed = vec![vec![false, true]; calls];
        computed[0][0] = true;
        let skipping = SkippingReport {
            kind: "block".into(),
            units: vec!["one".into(), "two".into()],
            computed,
            order: 1,
            kept: 0.55,
            history: Vec::new(),
            ways: Vec::new(),
        };
        let report = Report { skipping: Some(skipping), layers: Vec::new(), ..report() };
        let page = html(&report, &[]);
        let (_, section) = page.split_once("id=\"skipping\"").unwrap();
        let (section, _) = section.split_once("</section>").unwrap();
        let count = |text: &str| section.matches(text).count();
        for (text, times) in [
            ("its output is forecast from the last 2 times that it was computed", 1),
            ("55.0 % are left", 1),
            ("viewBox=\"0 0 900 56\"", 1),
            (&format!("2 parts by {calls} calls, filled where computed"), 1),
            ("class=\"tick\"", numbers),
            (&format!("<text class=\"tick\" x=\"{first}\" y=\"12\">1</text>"), 1),
            ("class=\"band\" x=\"170\" y=\"19\" width=\"722.0\" height=\"14\"", 1),
            ("class=\"band\" x=\"170\" y=\"35\" width=\"722.0\" height=\"14\"", 1),
            (&format!("class=\"dot\" x=\"170.00\" y=\"19\" width=\"{field}\" height=\"14\""), 1),
            (&format!("class=\"dot\" x=\"{last}\" y=\"35\" width=\"{field}\""), 1),
            ("class=\"dot\"", calls + 1),
        ] {
            assert_eq!(count(text), times, "{calls} calls: {text} in {section}");
        }
    }
}
