//! Description of a model.

use crate::error::Result;
use crate::format::{bytes, count, table};
use crate::settings::{DeviceSettings, InspectSettings, ModelSettings};
use secateur_models::{
    Block, HeadGroup, LayerName, Memory, ModelFolder, Observer, Pair, Reader, Removals,
    ReuseSchedule, Sampling, Structure, Unit,
};
use secateur_skip::kept;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The description of a denoiser.
#[derive(Serialize)]
pub struct Inspection {
    #[serde(skip)]
    name: String,
    model: PathBuf,
    parameters: u64,
    /// Number of parameters that are zero, if the weights were read.
    zeros: Option<u64>,
    macs: u64,
    macs_without_attention: u64,
    latent: (usize, usize),
    text_tokens: usize,
    file_bytes: u64,
    prunable_layers: usize,
    /// The schedule of a model that skips, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipping: Option<Skipping>,
    layers: Vec<LayerRow>,
    blocks: Vec<BlockRow>,
    units: Vec<UnitRow>,
    branches: Vec<UnitRow>,
}

/// The schedule of a run.
#[derive(Serialize)]
struct Skipping {
    kind: String,
    sampler: String,
    calls: usize,
    /// Multiply-accumulates of a run for one sample.
    macs: u64,
    /// Their share of the multiply-accumulates of a whole run.
    kept: f64,
    computed: Vec<Vec<bool>>,
}

/// A module that holds parameters, multiplies, or both.
#[derive(Default, Serialize)]
struct LayerRow {
    name: String,
    block: Option<String>,
    shape: Vec<usize>,
    dtype: Option<String>,
    parameters: u64,
    zeros: Option<u64>,
    macs: u64,
    prunable: bool,
}

/// A block, with the parts that methods can change.
#[derive(Serialize)]
struct BlockRow {
    name: String,
    parameters: u64,
    macs: u64,
    reads: Vec<String>,
    heads: Vec<HeadRow>,
    neurons: Vec<NeuronRow>,
    low_rank: Vec<LowRankRow>,
}

#[derive(Serialize)]
struct HeadRow {
    module: String,
    count: usize,
    removed: usize,
    head_dim: usize,
    streams: usize,
    norm: bool,
    rotary: bool,
}

#[derive(Serialize)]
struct NeuronRow {
    module: String,
    count: usize,
    removed: usize,
    gated: bool,
}

#[derive(Serialize)]
struct LowRankRow {
    module: String,
    kind: &'static str,
    rank: usize,
    removed: usize,
    barred: Option<&'static str>,
}

/// Successive blocks that can be skipped at a step, with outputs reused from earlier steps.
#[derive(Serialize)]
struct UnitRow {
    name: String,
    blocks: Vec<String>,
    parameters: u64,
    macs: u64,
    feeds: Vec<String>,
}

/// Describes a model, from configurations and headers. The weights are read only if zeros are
/// counted.
///
/// # Errors
/// If the folder cannot be read, or does not describe a model.
pub fn inspect(settings: &InspectSettings, observer: &dyn Observer) -> Result<Inspection> {
    let folder = settings.model.open(observer)?;
    observer.start(&[]);
    // It can be looked at all the same.
    if let Err(problem) = folder.sampler().and_then(|_| folder.check(&folder.sampling())) {
        observer.warn(&problem.to_string());
    }
    let inspection = Inspection::new(&folder, settings.zeros, observer)?;
    observer.finish();
    Ok(inspection)
}
/// The memory of a denoiser's call for a batch of images.
#[derive(Debug, Serialize)]
pub struct CallMemory {
    #[serde(skip)]
    name: String,
    #[serde(skip)]
    batch: usize,
    model: PathBuf,
    samples: usize,
    #[serde(flatten)]
    memory: Memory,
    total: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<String>,
}

/// Returns the memory of a call for `batch` images on a device. Each image counts twice if the
/// model uses guidance by default.
///
/// # Errors
/// If the folder cannot be read, or does not describe a model, or the device cannot be used.
pub fn call_memory(
    model: &ModelSettings,
    device: &DeviceSettings,
    batch: usize,
    observer: &dyn Observer,
) -> Result<CallMemory> {
    let folder = device.at(model.open(observer)?, observer)?;
    let sampling = folder.sampling();
    let samples = folder.passes(sampling.guidance) * batch;
    let memory = folder.memory(&sampling, samples);
    let (name, model, total) = (folder.name(), folder.path().to_owned(), memory.total());
    let gpu = folder.placement().description();
    Ok(CallMemory { name, batch, model, samples, memory, total, gpu })
}

impl CallMemory {
    /// Formats the memory as a table.
    #[must_use]
    pub fn text(&self) -> String {
        let parts = [
            ("weights", self.memory.weights),
            ("activations at their most", self.memory.activations),
            ("a call of the denoiser", self.total),
        ];
        let parts = parts.iter().filter(|(_, size)| *size > 0);
        let rows: Vec<_> =
            parts.map(|(what, size)| vec![(*what).to_owned(), bytes(*size)]).collect();
        let guided = self.samples > self.batch;
        let twice = if guided { ", each with and without its prompt" } else { "" };
        let place = self.gpu.as_ref().map(|gpu| format!(", on {gpu}")).unwrap_or_default();
        let table = table(&["", "memory"], &rows);
        format!(
            "{}: {} image(s) at a time{twice}{place}

{table}",
            self.name, self.batch
        )
    }
}

impl Skipping {
    fn new(reuse: &ReuseSchedule, structure: &Structure, sampling: &Sampling) -> Result<Self> {
        Ok(Self {
            kind: reuse.kind.to_string(),
            sampler: sampling.sampler.to_string(),
            calls: reuse.computed.len(),
            macs: reuse.macs(structure)?,
            kept: kept(reuse, structure)?,
            computed: reuse.computed.clone(),
        })
    }

    fn text(&self) -> String {
        format!(
            "in a run of {} calls by {} it computes {} MACs for one sample, {:.1} % of all, and \
             takes over the rest by {}",
            self.calls,
            self.sampler,
            count(self.macs),
            100.0 * self.kept,
            self.kind
        )
    }
}

impl Inspection {
    fn new(folder: &ModelFolder, zeros: bool, observer: &dyn Observer) -> Result<Self> {
        let sampling = folder.sampling();
        let structure = folder.structure(&sampling);
        let skipping = folder
            .reuse(&sampling, false)?
            .map(|reuse| Skipping::new(&reuse, &structure, &sampling));
        let layers = layers(folder, &structure, zeros, observer)?;
        let mut parameters: BTreeMap<&str, u64> = BTreeMap::new();
        for layer in &layers {
            *parameters.entry(layer.block.as_deref().unwrap_or_default()).or_default() +=
                layer.parameters;
        }
        let of_block = |block: &Block| parameters.get(block.name.as_str()).copied().unwrap_or(0);
        let geometry = folder.geometry(&sampling);
        Ok(Self {
            name: folder.name(),
            model: folder.path().to_owned(),
            parameters: layers.iter().map(|layer| layer.parameters).sum(),
            // Not every layer has weights to count them in.
            zeros: zeros.then(|| layers.iter().filter_map(|layer| layer.zeros).sum()),
            macs: structure.macs(),
            macs_without_attention: structure.macs_without_attention(),
            latent: geometry.latent,
            text_tokens: geometry.text,
            file_bytes: folder.checkpoint().bytes(),
            skipping: skipping.transpose()?,
            prunable_layers: layers.iter().filter(|layer| layer.prunable).count(),
            blocks: structure
                .blocks
                .iter()
                .map(|block| BlockRow::new(block, &structure, of_block(block), folder.removals()))
                .collect(),
            units: units(&structure, &structure.units, of_block),
            branches: units(&structure, &structure.branches, of_block),
            layers,
        })
    }

    /// Formats the description as a table: with `tree` the blocks, their removable parts and the
    /// blocks that each feeds, otherwise the layers. The sums follow.
    #[must_use]
    pub fn text(&self, tree: bool) -> String {
        let table = if tree { self.tree() } else { self.table() };
        let skipping =
            self.skipping.as_ref().map_or_else(String::new, |it| format!("\n\n{}", it.text()));
        let zeros = self
            .zeros
            .map_or_else(String::new, |zeros| format!(", {} zeros", share(zeros, self.parameters)));
        let (height, width) = self.latent;
        format!(
            "{table}{skipping}\n\n{}: {} parameters in the denoiser{zeros}, {} of weights; {} \
             prunable layers\n{} MACs a call for one sample ({} without the attention products), \
             at latents of {height} x {width} and {} text tokens",
            self.name,
            count(self.parameters),
            bytes(self.file_bytes),
            self.prunable_layers,
            count(self.macs),
            count(self.macs_without_attention),
            self.text_tokens,
        )
    }

    fn table(&self) -> String {
        let row = |layer: &LayerRow| {
            let some = |number: u64, text: String| if number == 0 { String::new() } else { text };
            let mut row = vec![
                layer.name.clone(),
                layer.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x "),
                layer.dtype.clone().unwrap_or_default(),
                some(layer.parameters, count(layer.parameters)),
                some(layer.macs, count(layer.macs)),
                if layer.prunable { "yes".into() } else { String::new() },
            ];
            if self.zeros.is_some() {
                row.push(
                    layer.zeros.map_or_else(String::new, |zeros| share(zeros, layer.parameters)),
                );
            }
            row
        };
        let mut header = vec!["layer", "shape", "type", "parameters", "MACs", "prunable"];
        header.extend(self.zeros.map(|_| "zeros"));
        table(&header, &self.layers.iter().map(row).collect::<Vec<_>>())
    }

    /// Formats units, their blocks, and the parts of each that methods can remove.
    fn tree(&self) -> String {
        let mut rows = Vec::new();
        let mut row = |label: String, of: Option<(u64, u64)>, note: String| {
            let numbers = of.map_or_else(
                || [const { String::new() }; 4],
                |(parameters, macs)| {
                    [
                        count(parameters),
                        share(parameters, self.parameters),
                        count(macs),
                        share(macs, self.macs),
                    ]
                },
            );
            rows.push(std::iter::once(label).chain(numbers).chain([note]).collect());
        };
        let mut blocks = self.blocks.iter().peekable();
        let mut units = self.units.iter().peekable();
        while let Some(block) = blocks.peek() {
            match units.next_if(|unit| unit.blocks.first() == Some(&block.name)) {
                Some(unit) => {
                    let feeds = format!("feeds {}", unit.feeds.join(", "));
                    row(unit.name.clone(), Some((unit.parameters, unit.macs)), feeds);
                    let single = unit.blocks.len() == 1;
                    for block in blocks.by_ref().take(unit.blocks.len()) {
                        if !single {
                            let name = block
                                .name
                                .strip_prefix(&format!("{}.", unit.name))
                                .unwrap_or(&block.name);
                            row(
                                format!("  {name}"),
                                Some((block.parameters, block.macs)),
                                String::new(),
                            );
                        }
                        for (label, note) in block.parts() {
                            row(
                                format!("{}{label}", if single { "  " } else { "    " }),
                                None,
                                note,
                            );
                        }
                    }
                }
                None => {
                    row(block.name.clone(), Some((block.parameters, block.macs)), String::new());
                    blocks.next();
                }
            }
        }
        table(&["block", "parameters", "share", "MACs", "share", ""], &rows)
    }
}

impl BlockRow {
    fn new(block: &Block, structure: &Structure, parameters: u64, removals: &Removals) -> Self {
        let gone = removals.iter().map(|(name, removal)| (name, removal.removed.len()));
        let gone: BTreeMap<&LayerName, usize> = gone.collect();
        let removed = |name: &LayerName| gone.get(name).copied().unwrap_or(0);
        let heads = |heads: &HeadGroup| HeadRow {
            module: heads.name.to_string(),
            count: heads.count,
            removed: removed(&heads.name),
            head_dim: heads.value,
            streams: heads.streams.len(),
            norm: heads.between.norm,
            rotary: heads.between.rotary,
        };
        let neurons = block.neurons.iter().map(|neurons| NeuronRow {
            module: neurons.name.to_string(),
            count: neurons.count,
            removed: removed(&neurons.name),
            gated: neurons.up.len() == 2,
        });
        let of_heads = |heads: &HeadGroup| {
            let row = |kind, pair: Pair, rank, barred| {
                let removed = removed(&pair.group_name(&heads.name));
                LowRankRow { module: heads.name.to_string(), kind, rank, removed, barred }
            };
            [
                row("query-key", Pair::QueryKey, heads.query_key, heads.barred()),
                row("value-output", Pair::ValueOutput, heads.value, None),
            ]
        };
        let of_neurons = block.neurons.iter().map(|neurons| LowRankRow {
            module: neurons.name.to_string(),
            kind: "feed-forward",
            rank: neurons.count,
            removed: removed(&neurons.name),
            barred: None,
        });
        let low_rank = block.heads.iter().flat_map(of_heads).chain(of_neurons);
        Self {
            name: block.name.clone(),
            parameters,
            macs: block.macs(),
            reads: block.reads.iter().map(|&read| structure.blocks[read].name.clone()).collect(),
            heads: block.heads.iter().map(heads).collect(),
            neurons: neurons.collect(),
            low_rank: low_rank.collect(),
        }
    }

    /// Returns the removable parts of the block, with notes on what prevents removal.
    fn parts(&self) -> Vec<(String, String)> {
        let name = |module: &str| {
            module.strip_prefix(&format!("{}.", self.name)).unwrap_or(module).to_owned()
        };
        let heads = self.heads.iter().map(|heads| {
            let joint = if heads.streams == 2 { ", image and text" } else { "" };
            let mut note =
                format!("{} heads of {}{joint}", left(heads.count, heads.removed), heads.head_dim);
            for pair in self.low_rank.iter().filter(|pair| pair.module == heads.module) {
                if let Some(barred) = pair.barred {
                    note += &format!("; query and key stay dense, {barred}");
                }
                if pair.removed > 0 {
                    note += &format!("; {} rank {}", pair.kind, left(pair.rank, pair.removed));
                }
            }
            (name(&heads.module), note)
        });
        let neurons = self.neurons.iter().map(|neurons| {
            let gated = if neurons.gated { ", gated" } else { "" };
            (
                name(&neurons.module),
                format!("{} neurons{gated}", left(neurons.count, neurons.removed)),
            )
        });
        heads.chain(neurons).collect()
    }
}

fn units(
    structure: &Structure,
    units: &[Unit],
    parameters: impl Fn(&Block) -> u64,
) -> Vec<UnitRow> {
    let reader = |reader: &Reader| match reader {
        Reader::Unit(index) => units[*index].name.clone(),
        Reader::Output => "output".into(),
    };
    let row = |(unit, readers): (&Unit, &std::collections::BTreeSet<Reader>)| {
        let blocks = &structure.blocks[unit.blocks.clone()];
        UnitRow {
            name: unit.name.clone(),
            blocks: blocks.iter().map(|block| block.name.clone()).collect(),
            parameters: blocks.iter().map(&parameters).sum(),
            macs: structure.unit_macs(unit),
            feeds: readers.iter().map(reader).collect(),
        }
    };
    units.iter().zip(&structure.readers(units)).map(row).collect()
}

/// Returns the modules that multiply, in execution order, and then those that only hold parameters,
/// such as norms.
fn layers(
    folder: &ModelFolder,
    structure: &Structure,
    zeros: bool,
    observer: &dyn Observer,
) -> Result<Vec<LayerRow>> {
    let checkpoint = folder.checkpoint();
    let tensors: Vec<_> =
        checkpoint.tensors().filter(|(name, _)| folder.is_parameter(name)).collect();
    if zeros {
        observer.begin("read", tensors.len(), "tensors");
    }
    let mut rows: BTreeMap<String, LayerRow> = BTreeMap::new();
    for (name, info) in tensors {
        let (module, parameter) = name.rsplit_once('.').unwrap_or((name, name));
        let row = rows.entry(module.to_owned()).or_insert_with(|| LayerRow {
            name: module.to_owned(),
            block: block_of(module, structure),
            zeros: zeros.then_some(0),
            ..LayerRow::default()
        });
        if parameter != "bias" {
            row.shape.clone_from(&info.shape);
            row.dtype = Some(format!("{:?}", info.dtype));
        }
        row.parameters += info.elements() as u64;
        if let Some(zeros) = &mut row.zeros {
            let values = checkpoint.read(name)?.flatten_all()?.to_vec1::<f32>()?;
            *zeros += values.iter().filter(|value| **value == 0.0).count() as u64;
            observer.advance(1)?;
        }
    }
    let mut layers = Vec::new();
    for block in &structure.blocks {
        for layer in &block.layers {
            let products = || LayerRow {
                name: format!("{} (attention products)", layer.name),
                ..LayerRow::default()
            };
            let row = rows.remove(layer.name.as_str()).unwrap_or_else(products);
            let (macs, prunable) = (layer.operation.macs(), layer.prunable.is_some());
            layers.push(LayerRow { block: Some(block.name.clone()), macs, prunable, ..row });
        }
    }
    layers.extend(rows.into_values());
    Ok(layers)
}

/// Returns the block of a module without products: the block with the longest name that is a prefix
/// of the module's.
fn block_of(module: &str, structure: &Structure) -> Option<String> {
    let inside =
        |block: &&Block| module.strip_prefix(&block.name).is_some_and(|rest| rest.starts_with('.'));
    structure
        .blocks
        .iter()
        .filter(inside)
        .max_by_key(|block| block.name.len())
        .map(|block| block.name.clone())
}

/// Formats a count, and the original count if some were removed.
fn left(count: usize, removed: usize) -> String {
    if removed == 0 { count.to_string() } else { format!("{count} of {}", count + removed) }
}

/// Formats a part of a whole in percent.
fn share(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}
