//! Writes a report with invented figures and pictures, to see what a change of the page looks like:
//! `cargo run -p secateur-eval --example sample_report -- FOLDER`.

use std::path::PathBuf;

use secateur_eval::{
    Comparison, LayerReport, ModelSummary, Picture, PicturePair, PromptRow, Report, Stage, Summary,
    TextImage, psnr_capped, ssim,
};
use serde_json::json;

const NAMES: [&str; 8] = [
    "red apple",
    "grinning face",
    "rocket",
    "hot beverage",
    "cat face",
    "umbrella",
    "octopus",
    "party popper",
];
const STYLES: [&str; 4] = ["twitter", "noto", "fluent 3d", "fluent flat"];
const LINEARS: [&str; 8] = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "ff.net.0.proj",
    "ff.net.2",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("name the folder to write into")?);
    let side = std::env::args().nth(2).map_or(Ok(64), |side| side.parse())?;
    let pairs = (0..64).map(|index| pair(index, side)).collect::<Result<Vec<_>, _>>()?;
    report(&pairs)?.write(&pairs, &folder)?;
    Ok(())
}

/// A number in \[0, 1) that looks random and depends on `seed` alone.
fn noise(seed: usize) -> f64 {
    let mixed = (seed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (mixed >> 40) as f64 / (1u64 << 24) as f64
}

/// A coloured ball on white, and the same ball a little off.
fn pair(index: usize, side: usize) -> secateur_eval::Result<PicturePair> {
    let ball = |shift: f64, grain: f64| {
        let colour = [noise(index * 3 + 1), noise(index * 3 + 2), noise(index * 3 + 3)];
        let mut pixels = Vec::with_capacity(side * side * 3);
        for place in 0..side * side {
            let (x, y) = (
                (place % side) as f64 / side as f64 - 0.5 - shift,
                (place / side) as f64 / side as f64 - 0.5,
            );
            let edge = ((0.36 - x.hypot(y)) * 40.0).clamp(0.0, 1.0);
            let shade = 1.0 - 1.2 * (x + 0.12).hypot(y + 0.12);
            for (channel, part) in colour.iter().enumerate() {
                let value = 1.0 - edge + edge * (0.25 + 0.75 * part) * shade;
                pixels.push((value + grain * (noise(place * 3 + channel) - 0.5)) as f32);
            }
        }
        Picture::new(side, side, pixels)
    };
    let change = 0.04 * noise(index + 500);
    Ok(PicturePair {
        prompt: format!("{}, {} style emoji", NAMES[index % 8], STYLES[index / 8 % 4]),
        reference: ball(0.0, 0.0)?,
        candidate: ball(change, 2.0 * change)?,
    })
}

fn report(pairs: &[PicturePair]) -> secateur_eval::Result<Report> {
    let prompts = pairs
        .iter()
        .enumerate()
        .map(|(index, pair)| {
            Ok(PromptRow {
                prompt: pair.prompt.clone(),
                psnr: psnr_capped(&pair.candidate, &pair.reference)?,
                ssim: ssim(&pair.candidate, &pair.reference)?,
                latent_error: 0.1 + 0.4 * noise(index + 500),
                score_reference: Some(0.28 + 0.08 * noise(index + 900)),
                score_candidate: Some(0.26 + 0.08 * noise(index + 950)),
            })
        })
        .collect::<secateur_eval::Result<Vec<_>>>()?;
    let of = |metric: fn(&PromptRow) -> f64| {
        Summary::of(&prompts.iter().map(metric).collect::<Vec<_>>())
    };
    let comparison = Comparison {
        reference: "emoji-mmdit".into(),
        candidate: "emoji-mmdit-50".into(),
        steps: 25,
        guidance: 4.0,
        psnr: of(|row| row.psnr)?,
        ssim: of(|row| row.ssim)?,
        latent_error: of(|row| row.latent_error)?,
        text_image: Some(TextImage {
            model: "emoji-clip".into(),
            score_reference: of(|row| row.score_reference.unwrap_or(0.0))?,
            score_candidate: of(|row| row.score_candidate.unwrap_or(0.0))?,
            top1_reference: 0.765_625,
            top1_candidate: 0.718_75,
            choices: 625,
        }),
        prompts,
    };
    let settings = json!({
        "method": "obs-diff", "sparsity": 0.5, "pattern": "unstructured", "calibration \
         prompts": 100,
        "calibration steps": [0, 6, 12, 18, 24], "packages": 4, "timestep weighting": "logarithmic",
        "layers": ["transformer_blocks.*.attn.*", "transformer_blocks.*.ff.*"], "fold idle \
         tokens": true,
    });
    let model = |name: &str, zeros| ModelSummary {
        name: name.into(),
        parameters: 18_612_544,
        zeros,
        macs: 1_834_000_000,
        file_bytes: 58_720_256,
        step_seconds: Some(0.021),
    };
    let stage = |name: &str, seconds, mebibytes: u64| Stage {
        name: name.into(),
        seconds,
        floor_seconds: None,
        peak_bytes: mebibytes << 20,
    };
    Ok(Report {
        format_version: Report::FORMAT_VERSION,
        title: "emoji-mmdit, half of the weights removed".into(),
        command: "secateur prune models/emoji-mmdit --method obs-diff --sparsity 0.5 --prompts \
             prompts/calibration.txt \
                  --steps 25 --guidance 4 --evaluate prompts/held-out.txt --out \
                  pruned/emoji-mmdit-50"
            .into(),
        secateur_version: env!("CARGO_PKG_VERSION").into(),
        seed: 42,
        settings: settings.as_object().cloned().unwrap_or_default(),
        models: vec![model("emoji-mmdit", 1_024), model("emoji-mmdit-50", 8_126_464)],
        comparison: Some(comparison),
        layers: (0..93).map(layer).collect(),
        stages: vec![
            stage("open", 0.8, 142),
            stage("calibrate", 96.4, 1_210),
            stage("solve", 41.2, 1_388),
            stage("save", 0.6, 1_388),
            stage("evaluate", 212.9, 1_388),
        ],
        peak_bytes: 1_388 << 20,
        groups: Vec::new(),
        skipping: None,
        notes: vec![
            "The layers of the last block were left as they are: the text stream ends \
             there."
                .into(),
            "transformer_blocks.3.ff.net.2 needed ten times the damping: its Hessian is close to \
             singular."
                .into(),
        ],
    })
}

fn layer(index: usize) -> LayerReport {
    let depth = index / 8;
    let wide = index % 8 == 6;
    LayerReport {
        name: format!("transformer_blocks.{depth}.{}", LINEARS[index % 8]),
        rows: if wide { 1536 } else { 384 },
        columns: if index % 8 == 7 { 1536 } else { 384 },
        sparsity: if depth == 11 { 0.0 } else { 0.5 },
        error: if depth == 11 {
            0.0
        } else {
            10f64.powf(-3.4 + 1.6 * noise(index) + depth as f64 * 0.08)
        },
        damping: if index == 31 { 0.1 } else { 0.01 },
        package: depth / 3,
    }
}
