//! Looking at models through the binary.

use super::common::{secateur, succeed};
use serde_json::Value;
use std::path::Path;

pub(crate) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// What `inspect` says of a folder.
pub(crate) fn inspect(folder: &Path) -> Value {
    json(&succeed(secateur().arg("inspect").arg(folder).args(["--json", "--quiet"])))
}

/// The picture that a model draws in three steps.
pub(crate) fn draw(folder: &Path, prompt: &str) -> image::RgbImage {
    let out = tempfile::tempdir().unwrap();
    let pictures = out.path().join("pictures");
    let options = ["--prompt", prompt, "--steps", "3", "--quiet"];
    succeed(secateur().arg("generate").arg(folder).arg("--out").arg(&pictures).args(options));
    image::open(pictures.join("0000.png")).unwrap().into_rgb8()
}
