//! `secateur convert`.

use super::request::command_line;
use crate::args::{Common, ConvertArgs};
use crate::format::{print, print_json};
use crate::progress::Progress;
use anyhow::Result;
use secateur_eval::Stage;
use secateur_models::files::shown;
use secateur_models::{Conversion, Observer, SingleFile};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Serialize)]
struct Converted {
    command: String,
    kind: &'static str,
    model: PathBuf,
    tensors: usize,
    /// Components whose weights come from the file.
    converted: Vec<&'static str>,
    /// Components whose weights come from the folder.
    copied: Vec<&'static str>,
    stages: Vec<Stage>,
    peak_bytes: u64,
}

pub(crate) fn run(args: &ConvertArgs, common: &Common) -> Result<()> {
    let file = SingleFile::open(&args.file)?;
    let kind = file.kind();
    let conversion = Conversion::plan(file, &args.like)?;
    let progress = Progress::new(common.quiet);
    conversion.warnings().for_each(|warning| progress.warn(&warning));
    let output = common.output(&args.out, &[&args.file, &args.like])?;
    progress.begin("convert", conversion.tensors(), "tensors");
    conversion.write(&output.path(), &progress)?;
    let (stages, peak_bytes) = progress.finish();
    output.finish()?;
    let (converted, copied) =
        (conversion.converted().collect::<Vec<_>>(), conversion.copied().to_vec());
    let tensors = conversion.tensors();
    if common.json {
        let (command, model) = (command_line(), args.out.clone());
        return print_json(&Converted {
            command,
            kind,
            model,
            tensors,
            converted,
            copied,
            stages,
            peak_bytes,
        });
    }
    print(&format!("{kind}: {} from {}", converted.join(", "), shown(&args.file)))?;
    if !copied.is_empty() {
        print(&format!("{} from {}", copied.join(", "), shown(&args.like)))?;
    }
    print(&format!("model: {}", shown(&args.out)))
}
