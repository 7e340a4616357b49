//! Model folders of published sizes without their weights.
//!
//! `full_size write CONFIGURATION OUT` makes a model folder from a folder of configurations, such
//! as `tools/full_size/sd-1.5`: the denoiser's weights are a sparse file of zeros behind a valid
//! header, which takes no space, and is enough for `inspect` and `prune --dry-run`. With `--random`
//! they are random numbers of a scale that keeps activations finite, and those of the components
//! that are named after it too: `vae`, `text_encoder_3` (a T5).
//!
//! `full_size forward MODEL [DEVICE [TYPE [PIXELS [SAMPLES [COMPONENT]]]]]` calls the denoiser of
//! such a folder on noise (`replayed`: as pipelines do, as a CUDA graph where that helps), or that
//! component, and prints the time of a call, the denoiser's multiply-accumulates, and the memory
//! beside the estimate.

use anyhow::{Context as _, Result, anyhow, bail};
use candle_core::{DType, Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use secateur_models::{
    AutoencoderKlConfig, Checkpoint, Conditioning, ModelFolder, Sampling, T5Config, T5Encoder,
    autoencoder_config, denoiser_config, noise,
};
use secateur_nn::ops::Replay;
use secateur_nn::{Context, DeviceChoice, Kind, Placement, Wanted};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["write", configuration, out] => write(Path::new(configuration), Path::new(out), None),
        ["write", configuration, out, "--random", components @ ..] => {
            write(Path::new(configuration), Path::new(out), Some(components))
        }
        ["forward", model, options @ ..] => forward(Path::new(model), options),
        _ => bail!(
            "write CONFIGURATION OUT [--random [COMPONENT...]], or forward MODEL [DEVICE [TYPE \
             [PIXELS [SAMPLES [COMPONENT]]]]]"
        ),
    }
}

/// `random`: the components besides the denoiser whose weights are made, all of them random.
fn write(configuration: &Path, out: &Path, random: Option<&[&str]>) -> Result<()> {
    if out.exists() {
        bail!("{} exists", out.display());
    }
    copy(configuration, out)?;
    let denoiser = ["unet", "transformer"].into_iter().find(|name| out.join(name).is_dir());
    let denoiser = denoiser.context("no unet or transformer among the configurations")?;
    let config = |name: &str| out.join(name).join("config.json");
    let wanted = denoiser_config(&config(denoiser))?.parameters(&Default::default())?;
    let stem = "diffusion_pytorch_model";
    write_weights(&out.join(denoiser), stem, &wanted, random.is_some())?;
    for &component in random.unwrap_or_default() {
        let (stem, wanted) = match component {
            VAE => (stem, AutoencoderKlConfig::open(&config(VAE))?.parameters()?),
            T5 => ("model", T5Config::open(&config(T5))?.parameters()?),
            _ => bail!("{component}: {VAE} or {T5}"),
        };
        write_weights(&out.join(component), stem, &wanted, true)?;
    }
    Ok(())
}

const VAE: &str = "vae";
const T5: &str = "text_encoder_3";

fn write_weights(
    component: &Path,
    stem: &str,
    wanted: &BTreeMap<String, Wanted>,
    random: bool,
) -> Result<()> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, Wanted { shape, .. }) in wanted {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(
            name.clone(),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}),
        );
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let path = component.join(format!("{stem}.safetensors"));
    let mut file = BufWriter::new(File::create_new(&path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    if random {
        write_random(wanted, &mut file)?;
    }
    file.flush()?;
    file.get_ref().set_len((8 + header.len() + end) as u64)?;
    let parameters: usize = wanted
        .values()
        .filter(|wanted| wanted.kind != Kind::Constant)
        .map(|wanted| wanted.shape.iter().product::<usize>())
        .sum();
    print(&format!("{}: {parameters} parameters", component.display()))
}

/// Weights of variance 1 / inputs, norms of 1, biases of 0, in the order of their names. The random
/// numbers repeat, from another one on in every tensor.
fn write_random(wanted: &BTreeMap<String, Wanted>, file: &mut impl Write) -> Result<()> {
    const DIFFERENT: usize = 1 << 20;
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let numbers: Vec<f32> = (0..DIFFERENT).map(|_| StandardNormal.sample(&mut random)).collect();
    let mut from = 0;
    for (name, Wanted { shape, .. }) in wanted {
        let inputs: usize = shape.iter().skip(1).product();
        let scale = 1.0 / (inputs as f32).sqrt();
        let count = shape.iter().product();
        let value = |index: usize| match (shape.len(), name.ends_with("weight")) {
            (1, true) => 1.0,
            (1, false) => 0.0,
            _ => numbers[(from + index) % DIFFERENT] * scale,
        };
        for start in (0..count).step_by(DIFFERENT) {
            // The upper half of a float is a bfloat16.
            let halves: Vec<[u8; 2]> = (start..count.min(start + DIFFERENT))
                .map(|index| ((value(index).to_bits() >> 16) as u16).to_le_bytes())
                .collect();
            file.write_all(halves.as_flattened())?;
        }
        from = (from + count + 12_345) % DIFFERENT;
    }
    Ok(())
}

/// Calls of a denoiser are timed so often.
const CALLS: usize = 7;

/// `options`: device, type, pixels of a side, samples, and component, in this order, each with a
/// default.
fn forward(model: &Path, options: &[&str]) -> Result<()> {
    let option = |index: usize| options.get(index).copied();
    let device: DeviceChoice =
        option(0).unwrap_or("cpu").parse().map_err(|problem: String| anyhow!(problem))?;
    let dtype = match option(1) {
        None | Some("f32") => DType::F32,
        Some("bf16") => DType::BF16,
        Some("f16") => DType::F16,
        Some(other) => bail!("{other}: f32, f16 or bf16"),
    };
    let placement = Placement::new(device.open()?, dtype);
    let folder = ModelFolder::open(model, None)?.at(placement.clone());
    let samples = option(3).map_or(Ok(1), str::parse)?;
    let mut sampling = folder.sampling();
    if let Some(side) = option(2) {
        sampling.latent = (side.parse::<usize>()? / 8, side.parse::<usize>()? / 8);
    }
    let component = option(4).unwrap_or("denoiser");
    let start = Instant::now();
    let call = match component {
        VAE => decode(&folder, &sampling, samples)?,
        T5 => encode(&folder, samples)?,
        "denoiser" => denoise(&folder, &sampling, samples, None)?,
        "replayed" => denoise(&folder, &sampling, samples, Some(Replay::default()))?,
        _ => bail!("{component}: denoiser, replayed, {VAE} or {T5}"),
    };
    print(&format!("{component} loaded in {:.1} s", start.elapsed().as_secs_f64()))?;
    let timed = || {
        let start = Instant::now();
        // The call has ended when one of its numbers is read.
        let square = call()?.to_dtype(DType::F32)?.sqr()?.mean_all()?.to_scalar::<f32>()?;
        anyhow::ensure!(square.is_finite(), "the output is not finite");
        Ok((start.elapsed().as_secs_f64(), square.sqrt()))
    };
    // The first calls pack weights, load kernels, choose algorithms and record.
    for _ in 0..4 {
        timed()?;
    }
    let mut seconds = Vec::new();
    let mut size = 0.0;
    for _ in 0..CALLS {
        let (time, square) = timed()?;
        seconds.push(time);
        size = square;
    }
    seconds.sort_by(f64::total_cmp);
    let (median, (height, width)) = (seconds[CALLS / 2], sampling.latent);
    print(&format!(
        "{samples} x {} x {}, {dtype:?}: {:.2} ms a call; root mean square {size:.3}",
        8 * height,
        8 * width,
        1e3 * median,
    ))?;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let peak = match placement.memory() {
        Some(gpu) => gpu.peak,
        None => peak_bytes().context("no peak memory on this system")?,
    };
    let memory = match component {
        VAE => folder.autoencoder_memory(&sampling).total(),
        T5 => folder.text_encoder_memory().total(),
        _ => {
            let macs = folder.structure(&sampling).macs() as f64 * samples as f64;
            print(&format!("{:.1} TFLOPS of {:.1} G MACs", 2e-12 * macs / median, macs / 1e9))?;
            folder.memory(&sampling, samples).total()
        }
    };
    let (peak, memory) = (gib(peak), gib(memory));
    print(&format!("peak memory {peak:.2} GiB, estimated {memory:.2} GiB for a call"))
}

type CallOf = Box<dyn Fn() -> Result<Tensor>>;

fn denoise(
    folder: &ModelFolder,
    sampling: &Sampling,
    samples: usize,
    replay: Option<Replay>,
) -> Result<CallOf> {
    let placement = folder.placement().clone();
    let denoiser = folder
        .checkpoint()
        .clone()
        .at(&placement)
        .load()?
        .build(|scope| folder.denoiser().build(&scope.into()))?;
    let config = folder.path().join(folder.denoiser_component()).join("config.json");
    let config: Value = serde_json::from_slice(&std::fs::read(config)?)?;
    let size = |name: &str| config[name].as_u64().map(|size| size as usize);
    // SDXL's takes six sinusoids of 256 numbers beside the pooled text.
    let pooled = size("pooled_projection_dim")
        .or(size("projection_class_embeddings_input_dim").map(|width| width - 6 * 256));
    let random = |shape: &[usize]| -> Result<Tensor> {
        Ok(placement.bring(&noise(1, 0..samples, 0, shape)?)?)
    };
    let conditioning = Conditioning {
        text: Some(random(&[folder.geometry(sampling).text, folder.denoiser().text_width()])?),
        pooled: pooled.map(|width| random(&[width])).transpose()?,
        time_ids: Some(Tensor::full(1024f32, (samples, 6), &Device::Cpu)?),
        guidance: Some(Tensor::full(3.5f32, samples, &Device::Cpu)?),
        ..Conditioning::default()
    };
    let conditioning = conditioning.at(&placement)?;
    let (height, width) = sampling.latent;
    let latents = random(&[folder.denoiser().latent_shape()[0], height, width])?;
    let times = placement.in_f32().tensor(vec![500f32; samples], samples)?;
    let inputs = [latents, times];
    let call = move |inputs: &[Tensor]| -> Result<Tensor> {
        Ok(denoiser.forward(&inputs[0], &inputs[1], &conditioning, &Context::default())?)
    };
    Ok(Box::new(move || match &replay {
        Some(replay) => replay.call(&inputs, &call),
        None => call(&inputs),
    }))
}

fn decode(folder: &ModelFolder, sampling: &Sampling, samples: usize) -> Result<CallOf> {
    let (path, placement) = (folder.path().join(VAE), folder.placement().clone());
    let config = autoencoder_config(&path.join("config.json"))?;
    let checkpoint = Checkpoint::open(&path, "diffusion_pytorch_model", None)?.at(&placement);
    let autoencoder = config.load(&checkpoint)?;
    let (height, width) = sampling.latent;
    let latents = noise(1, 0..samples, 0, &[config.channels(), height, width])?;
    let latents = placement.bring(&latents)?;
    Ok(Box::new(move || Ok(autoencoder.decode(&latents)?)))
}

/// Of 512 tokens.
fn encode(folder: &ModelFolder, samples: usize) -> Result<CallOf> {
    let placement = folder.placement().beyond_f16();
    let encoder = T5Encoder::open(&folder.path().join(T5), None, &placement)?;
    let ids = Tensor::arange(0u32, samples as u32 * 512, &Device::Cpu)?.reshape((samples, 512))?;
    Ok(Box::new(move || Ok(encoder.forward(&ids, None)?)))
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
