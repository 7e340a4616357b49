//! `secateur inspect`.

use crate::args::{Common, InspectArgs};
use crate::format::{bytes, count, print, print_json, table};
use crate::progress::Progress;
use anyhow::Result;
use secateur_models::{Memory, ModelFolder, Observer, TensorInfo};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Serialize)]
struct Inspection {
    model: PathBuf,
    parameters: u64,
    zeros: u64,
    macs: u64,
    macs_without_attention: u64,
    latent: (usize, usize),
    text_tokens: usize,
    file_bytes: u64,
    prunable_layers: usize,
    layers: Vec<LayerRow>,
}

/// A module that holds parameters, multiplies, or both.
#[derive(Serialize)]
struct LayerRow {
    name: String,
    block: Option<String>,
    shape: Vec<usize>,
    dtype: Option<String>,
    parameters: u64,
    zeros: u64,
    macs: u64,
    prunable: bool,
}

pub(crate) fn run(args: &InspectArgs, common: &Common) -> Result<()> {
    let folder = args.model.open()?;
    if args.memory {
        return memory(&folder, args.batch, common);
    }
    let progress = Progress::new(common.quiet);
    let inspection = inspect(&folder, &progress)?;
    progress.finish();
    if common.json {
        return print_json(&inspection);
    }
    let row = |layer: &LayerRow| {
        let shape = layer.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
        let share = 100.0 * layer.zeros as f64 / layer.parameters.max(1) as f64;
        let some = |number: u64, text: String| if number == 0 { String::new() } else { text };
        vec![
            layer.name.clone(),
            shape,
            layer.dtype.clone().unwrap_or_default(),
            some(layer.parameters, count(layer.parameters)),
            some(layer.parameters, format!("{share:.1} %")),
            some(layer.macs, count(layer.macs)),
            if layer.prunable { "yes".into() } else { String::new() },
        ]
    };
    let rows: Vec<_> = inspection.layers.iter().map(row).collect();
    print(&table(&["layer", "shape", "type", "parameters", "zeros", "MACs", "prunable"], &rows))?;
    let (height, width) = inspection.latent;
    let share = 100.0 * inspection.zeros as f64 / inspection.parameters.max(1) as f64;
    print(&format!(
        "\n{}: {} parameters in the denoiser, {share:.1} % zeros, {} of weights; {} prunable layers\n\
         {} MACs a call for one sample ({} without the attention products), at latents of {height} x {width} and {} \
         text tokens",
        folder.name(),
        count(inspection.parameters),
        bytes(inspection.file_bytes),
        inspection.prunable_layers,
        count(inspection.macs),
        count(inspection.macs_without_attention),
        inspection.text_tokens,
    ))
}

/// Prints what a call for a batch of images takes, each of them twice where the model is guided by default.
fn memory(folder: &ModelFolder, batch: usize, common: &Common) -> Result<()> {
    let passes = folder.passes(folder.generation().guidance);
    let samples = passes * batch;
    let memory = folder.memory(samples);
    if common.json {
        #[derive(Serialize)]
        struct Needs {
            model: PathBuf,
            samples: usize,
            #[serde(flatten)]
            memory: Memory,
            total: u64,
        }
        return print_json(&Needs { model: folder.path().to_owned(), samples, memory, total: memory.total() });
    }
    let parts = [
        ("weights", memory.weights),
        ("weights as products read them", memory.packed_weights),
        ("activations at their most", memory.activations),
        ("a call of the denoiser", memory.total()),
    ];
    let rows: Vec<_> = parts.iter().map(|(what, size)| vec![(*what).to_owned(), bytes(*size)]).collect();
    let twice = if passes == 2 { ", each with and without its prompt" } else { "" };
    print(&format!("{}: {batch} image(s) at a time{twice}\n", folder.name()))?;
    print(&table(&["", "memory"], &rows))
}

fn inspect(folder: &ModelFolder, progress: &Progress) -> Result<Inspection> {
    let checkpoint = folder.checkpoint();
    let structure = folder.structure();
    let tensors: Vec<(&str, &TensorInfo)> = checkpoint.tensors().collect();
    progress.begin("read", tensors.len(), "tensors");
    let mut rows: BTreeMap<String, LayerRow> = BTreeMap::new();
    for (name, info) in tensors {
        let values = checkpoint.read(name)?.flatten_all()?.to_vec1::<f32>()?;
        let (module, parameter) = name.rsplit_once('.').unwrap_or((name, name));
        let row = rows.entry(module.to_owned()).or_insert_with(|| LayerRow {
            name: module.to_owned(),
            block: None,
            shape: Vec::new(),
            dtype: None,
            parameters: 0,
            zeros: 0,
            macs: 0,
            prunable: false,
        });
        if parameter != "bias" {
            row.shape.clone_from(&info.shape);
            row.dtype = Some(format!("{:?}", info.dtype));
        }
        row.parameters += values.len() as u64;
        row.zeros += values.iter().filter(|value| **value == 0.0).count() as u64;
        progress.advance(1)?;
    }
    // First what multiplies, in execution order; each module without products (norms, tables) before the next one
    // that shares its prefix would hide that order, so they follow at the end.
    let mut layers = Vec::new();
    for block in &structure.blocks {
        for layer in &block.layers {
            let row = rows.remove(layer.name.as_str()).unwrap_or_else(|| LayerRow {
                name: format!("{} (attention products)", layer.name),
                block: None,
                shape: Vec::new(),
                dtype: None,
                parameters: 0,
                zeros: 0,
                macs: 0,
                prunable: false,
            });
            let (macs, prunable) = (layer.operation.macs(), layer.prunable.is_some());
            layers.push(LayerRow { block: Some(block.name.clone()), macs, prunable, ..row });
        }
    }
    layers.extend(rows.into_values());
    let geometry = folder.geometry();
    Ok(Inspection {
        model: folder.path().to_owned(),
        parameters: layers.iter().map(|layer| layer.parameters).sum(),
        zeros: layers.iter().map(|layer| layer.zeros).sum(),
        macs: structure.macs(),
        macs_without_attention: structure.macs_without_attention(),
        latent: geometry.latent,
        text_tokens: geometry.text,
        file_bytes: checkpoint.bytes(),
        prunable_layers: layers.iter().filter(|layer| layer.prunable).count(),
        layers,
    })
}
