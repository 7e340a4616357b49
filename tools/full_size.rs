//! Model folders of published sizes without their weights.
//!
//! `full_size write CONFIGURATION OUT` makes a model folder from a folder of configurations, such
//! as `tools/full_size/sd-1.5`: the denoiser's weights are a sparse file of zeros behind a valid
//! header, which takes no space, and is enough for `inspect` and `prune --dry-run`. With `--random`
//! they are random numbers of a scale that keeps activations finite.
//!
//! `full_size forward MODEL` calls the denoiser of such a folder once, on noise, and tells the time
//! beside its multiply-accumulates and the memory beside what was foretold.

use anyhow::{Context as _, Result, bail};
use candle_core::DType;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use secateur_models::{Conditioning, ModelFolder, denoiser_config, noise};
use secateur_nn::{Context, Wanted};
use serde_json::{Map, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["write", configuration, out] => write(Path::new(configuration), Path::new(out), false),
        ["write", configuration, out, "--random"] => {
            write(Path::new(configuration), Path::new(out), true)
        }
        ["forward", model] => forward(Path::new(model)),
        _ => bail!("write CONFIGURATION OUT [--random], or forward MODEL"),
    }
}

fn write(configuration: &Path, out: &Path, random: bool) -> Result<()> {
    if out.exists() {
        bail!("{} exists", out.display());
    }
    copy(configuration, out)?;
    let component =
        ["unet", "transformer"].map(|name| out.join(name)).into_iter().find(|path| path.is_dir());
    let component = component.context("no unet or transformer among the configurations")?;
    let wanted = denoiser_config(&component.join("config.json"))?.parameters(&Default::default())?;
    let mut header = Map::new();
    let mut end = 0;
    for (name, Wanted { shape, .. }) in &wanted {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(
            name.clone(),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}),
        );
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let path = component.join("diffusion_pytorch_model.safetensors");
    let mut file = BufWriter::new(File::create_new(&path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    if random {
        write_random(&wanted, &mut file)?;
    }
    file.flush()?;
    file.get_ref().set_len((8 + header.len() + end) as u64)?;
    let parameters: usize = wanted
        .values()
        .filter(|wanted| !wanted.constant)
        .map(|wanted| wanted.shape.iter().product::<usize>())
        .sum();
    print(&format!("{}: {parameters} parameters", out.display()))
}

/// Weights of variance 1 / inputs, norms of 1, biases of 0, in the order of their names.
fn write_random(wanted: &BTreeMap<String, Wanted>, file: &mut impl Write) -> Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    for (name, Wanted { shape, .. }) in wanted {
        let inputs: usize = shape.iter().skip(1).product();
        for _ in 0..shape.iter().product() {
            let value = match (shape.len(), name.ends_with("weight")) {
                (1, true) => 1.0,
                (1, false) => 0.0,
                _ => {
                    let normal: f32 = StandardNormal.sample(&mut random);
                    normal / (inputs as f32).sqrt()
                }
            };
            // The upper half of a float is a bfloat16.
            file.write_all(&((value.to_bits() >> 16) as u16).to_le_bytes())?;
        }
    }
    Ok(())
}

fn forward(model: &Path) -> Result<()> {
    let folder = ModelFolder::open(model, None)?;
    let sampling = folder.sampling();
    let (macs, memory) = (folder.structure(&sampling).macs(), folder.memory(&sampling, 1));
    let start = Instant::now();
    let denoiser =
        folder.checkpoint().load()?.build(|scope| folder.denoiser().build(&scope.into()))?;
    print(&format!("{} loaded in {:.1} s", folder.name(), start.elapsed().as_secs_f64()))?;
    let text =
        noise(1, 0..1, 0, &[folder.geometry(&sampling).text, folder.denoiser().text_width()])?;
    let conditioning = Conditioning { text: Some(text), ..Conditioning::default() };
    let latents = noise(0, 0..1, 0, &folder.denoiser().latent_shape())?;
    // The first call packs the weights.
    for call in ["first", "second"] {
        let start = Instant::now();
        let output = denoiser.forward(&latents, &[500.0], &conditioning, &Context::default())?;
        let seconds = start.elapsed().as_secs_f64();
        let rate = 2e-9 * macs as f64 / seconds;
        print(&format!(
            "{call} call: {seconds:.2} s for {:.1} G MACs: {rate:.0} GFLOPS",
            macs as f64 / 1e9
        ))?;
        let size = output.sqr()?.mean_all()?.sqrt()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if !size.is_finite() {
            bail!("the output is not finite");
        }
        print(&format!("  output {:?}, root mean square {size:.3}", output.dims()))?;
    }
    let peak = peak_bytes().context("no peak memory on this system")?;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    print(&format!(
        "peak memory {:.2} GiB, a call was said to take {:.2} GiB",
        gib(peak),
        gib(memory.total())
    ))
}

fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn copy(source: &Path, destination: &Path) -> Result<()> {
    std::fs::create_dir_all(destination)?;
    for entry in std::fs::read_dir(source).with_context(|| source.display().to_string())? {
        let entry = entry?;
        let target = destination.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => drop(std::fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

fn print(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
