//! Timing of models, side by side.

use super::compare::{macs_a_call, model_summary};
use super::folder::{names, open_model, skipping};
use super::memory_needs::MemoryNeeds;
use crate::error::{Result, refuse};
use crate::format::{bytes, count, table};
use crate::machine::Product;
use crate::memory;
use crate::settings::{
    BenchSettings, DeviceSettings, Positive, SamplingSettings, SkippingSettings,
};
use secateur_eval::{ModelSummary, Spread};
use secateur_models::files::shown;
use secateur_models::{
    Conditioning, Denoising, ModelFolder, Observer, Pipeline, Sampling, Subject, noise,
};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// The default number of rounds.
const REPEATS: usize = 5;

/// The result of timing models.
#[derive(Serialize)]
pub struct Bench {
    sampler: String,
    steps: usize,
    guidance: f64,
    latent: (usize, usize),
    batch: usize,
    repeats: usize,
    threads: usize,
    /// Type of numbers, and name, memory and libraries of the GPU; `None` on the CPU.
    gpu: Option<String>,
    /// Floating-point operations per second of a matrix product on the device that computes.
    product_operations_per_second: Spread,
    /// The same in words.
    #[serde(skip)]
    product: String,
    models: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    path: PathBuf,
    #[serde(flatten)]
    summary: ModelSummary,
    /// `macs` without the text tokens that equal others and so are not computed.
    computed_macs: u64,
    /// `None` if the system does not report it.
    peak_bytes: Option<u64>,
    encode_seconds: Spread,
    step_seconds: Spread,
    decode_seconds: Spread,
    /// The time from prompts to pictures, per image of a batch.
    image_seconds: Spread,
    images_per_second: f64,
    /// Floating-point operations per second of a step.
    operations_per_second: f64,
    /// The time of a step at the rate of the matrix product.
    floor_seconds: f64,
    /// `None` for the first model.
    gain: Option<Gain>,
}

/// The speed-up of a model against the first.
#[derive(Serialize)]
struct Gain {
    step_speed_up: Spread,
    image_speed_up: Spread,
    macs_speed_up: f64,
    /// Share of a step's time that is saved, divided by the share of the multiply-accumulates that
    /// is saved. `None` if both models have the same number.
    time_saved_over_macs_saved: Option<f64>,
}

/// Measured seconds of a model.
#[derive(Default)]
struct Times {
    /// Seconds of encoding the prompts, per round.
    encode: Vec<f64>,
    /// Seconds of each step of each round.
    steps: Vec<f64>,
    /// Seconds of decoding latents to pictures, per round.
    decode: Vec<f64>,
}

/// Times models side by side. If there are several, `peak_alone` measures the peak memory of each
/// in bytes: it runs `bench` with the settings that it gets in a process of its own. In a process
/// with several models, each model reuses memory that others have freed.
///
/// # Errors
/// If the models do not do the same work, or one of them fails.
pub fn bench(
    args: &BenchSettings,
    peak_alone: &dyn Fn(&BenchSettings) -> Result<Option<u64>>,
    observer: &dyn Observer,
) -> Result<Bench> {
    let open = |path: &PathBuf| open_model(path, args.variant.as_deref(), observer);
    if args.models.is_empty() {
        refuse!("there is no MODEL to time");
    }
    let mut folders: Vec<ModelFolder> = Vec::new();
    for path in &args.models {
        let folder = open(path)?;
        folders.push(match folders.first() {
            Some(first) => folder.at(first.placement().clone()),
            None => args.device.at(folder, observer)?,
        });
    }
    let sampling = args.sampling.sampling(&folders[0], 1)?;
    for folder in &folders[1..] {
        check_alike((&folders[0], &sampling), (folder, &args.sampling.sampling(folder, 1)?))?;
    }
    let needs = |folder| MemoryNeeds::of(folder, &sampling, sampling.batch).with_encoders();
    let Some(needs) = folders.iter().map(needs).reduce(MemoryNeeds::beside) else {
        refuse!("there is no MODEL to time");
    };
    needs.check()?;
    let skipping = |folder: &ModelFolder| skipping(&sampling, folder, args.skipping.adapt);
    let samplings = folders.iter().map(skipping).collect::<Result<Vec<_>>>()?;
    let names = names(&folders.iter().map(ModelFolder::path).collect::<Vec<_>>());
    let repeats = args.repeats.map_or(REPEATS, Positive::get);
    observer.start(&[]);
    let mut peaks = Vec::new();
    if folders.len() > 1 {
        observer.begin("memory", folders.len(), "models");
        // In the type of numbers that the first model, and so all, are timed in.
        let mut device = args.device.clone();
        if folders[0].placement().is_on_gpu() {
            device.dtype = Some(args.device.dtype_of(&folders[0]));
        }
        for (folder, sampling) in folders.iter().zip(&samplings) {
            peaks.push(peak_alone(&alone(folder, sampling, &device)?)?);
            observer.advance(1)?;
        }
    }
    observer.begin("load", folders.len(), "models");
    let mut pipelines = Vec::new();
    for (folder, sampling) in folders.into_iter().zip(&samplings) {
        let pipeline = Pipeline::open(folder).map_err(|error| needs.explain(error))?;
        warm_up(&pipeline, sampling).map_err(|error| needs.explain(error))?;
        pipelines.push(pipeline);
        observer.advance(1)?;
    }
    if peaks.is_empty() {
        let gpu = pipelines.first().and_then(|one| one.folder().placement().memory());
        let process = Some(memory::peak()).filter(|bytes| *bytes > 0);
        peaks.push(gpu.map(|gpu| gpu.peak).or(process));
    }
    let mut times: Vec<Times> = pipelines.iter().map(|_| Times::default()).collect();
    let Some(first) = pipelines.first() else { refuse!("no model to measure") };
    let mut product = Product::new(first.folder().placement())?;
    observer.begin(
        "measure",
        repeats * pipelines.len() * sampling.steps * sampling.batch,
        "image steps",
    );
    for _ in 0..repeats {
        round(&pipelines, &samplings, &mut times, &mut product, observer)
            .map_err(|error| needs.explain(error))?;
    }
    observer.finish();

    let product_rate = product.rate();
    let mut models = Vec::new();
    let named = pipelines.iter().zip(&names).zip(&samplings);
    for ((((pipeline, name), sampling), times), peak_bytes) in named.zip(&times).zip(peaks) {
        models.push(Row::new(pipeline, name, times, sampling, peak_bytes, product_rate.median)?);
    }
    for index in 1..models.len() {
        let macs = (models[0].summary.macs, models[index].summary.macs);
        // The steps of a model that skips are not alike.
        let paired = [0, index].iter().all(|&index| samplings[index].reuse.is_none());
        models[index].gain =
            Some(Gain::new(&times[0], &times[index], macs, sampling.steps, paired));
    }
    Ok(Bench {
        sampler: sampling.sampler.to_string(),
        steps: sampling.steps,
        guidance: sampling.guidance,
        latent: sampling.latent,
        batch: sampling.batch,
        repeats,
        threads: rayon::current_num_threads(),
        gpu: pipelines.first().and_then(|one| one.folder().placement().description()),
        product_operations_per_second: product_rate,
        product: product.text(),
        models,
    })
}

/// Fails if two models would not do the same work.
fn check_alike(
    reference: (&ModelFolder, &Sampling),
    other: (&ModelFolder, &Sampling),
) -> Result<()> {
    let settings = |(folder, sampling): (&ModelFolder, &Sampling)| {
        let geometry = folder.geometry(sampling);
        let (height, width) = geometry.latent;
        [
            ("pipeline class", folder.class_name().to_owned()),
            ("size of latents", format!("{height} x {width}")),
            ("text tokens", geometry.text.to_string()),
            ("`steps`", sampling.steps.to_string()),
            ("`sampler`", sampling.sampler.to_string()),
            ("`guidance`", sampling.guidance.to_string()),
        ]
    };
    for ((what, ours), (_, theirs)) in settings(reference).into_iter().zip(settings(other)) {
        if ours != theirs {
            let (reference, other) = (shown(reference.0.path()), shown(other.0.path()));
            refuse!("{other} cannot be held against {reference}: {what} {theirs}, not {ours}");
        }
    }
    Ok(())
}

/// Returns the settings of a process that measures the peak memory of one model. It has few steps,
/// but as many as any sampler needs.
fn alone(
    folder: &ModelFolder,
    sampling: &Sampling,
    device: &DeviceSettings,
) -> Result<BenchSettings> {
    let (height, width) = sampling.latent;
    let number = |number: usize| Positive::try_from(number).map(Some);
    Ok(BenchSettings {
        models: vec![folder.path().to_owned()],
        variant: folder.variant().map(str::to_owned),
        repeats: number(1)?,
        sampling: SamplingSettings {
            steps: number(sampling.steps.min(4))?,
            height: number(height * folder.factor())?,
            width: number(width * folder.factor())?,
            sampler: Some(sampling.sampler),
            guidance: Some(sampling.guidance),
            negative_prompt: Some(sampling.negative_prompt.clone()),
            seed: None,
            batch: number(sampling.batch)?,
        },
        skipping: SkippingSettings { adapt: sampling.reuse.is_some() },
        device: device.clone(),
    })
}

/// Draws the first steps of a batch: one, or as many as it takes until a GPU has recorded a call.
fn warm_up(pipeline: &Pipeline, sampling: &Sampling) -> Result<()> {
    let conditioning = encode(pipeline, sampling)?;
    let mut denoising = begin(pipeline, &conditioning, sampling)?;
    let steps = if pipeline.folder().placement().is_on_gpu() { 4 } else { 1 };
    for _ in 0..steps {
        denoising.step()?;
    }
    pipeline.pictures(denoising.latents())?;
    Ok(())
}

/// Draws a batch with every model. The models take turns at every step.
fn round(
    pipelines: &[Pipeline],
    samplings: &[Sampling],
    times: &mut [Times],
    product: &mut Product,
    observer: &dyn Observer,
) -> Result<()> {
    product.measure()?;
    let mut conditioning = Vec::new();
    for ((pipeline, sampling), times) in pipelines.iter().zip(samplings).zip(&mut *times) {
        conditioning.push(timed(&mut times.encode, || encode(pipeline, sampling))?);
    }
    let begin = |((pipeline, conditioning), sampling)| begin(pipeline, conditioning, sampling);
    let all = pipelines.iter().zip(&conditioning).zip(samplings);
    let mut denoisings = all.map(begin).collect::<Result<Vec<_>, _>>()?;
    // All take as many.
    for _ in 0..samplings.first().map_or(0, |sampling| sampling.steps) {
        for ((denoising, sampling), times) in denoisings.iter_mut().zip(samplings).zip(&mut *times)
        {
            timed(&mut times.steps, || denoising.step())?;
            observer.advance(sampling.batch)?;
        }
    }
    for ((pipeline, denoising), times) in pipelines.iter().zip(&denoisings).zip(times) {
        timed(&mut times.decode, || pipeline.pictures(denoising.latents()))?;
    }
    Ok(())
}

fn timed<T, E>(seconds: &mut Vec<f64>, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let start = Instant::now();
    let done = work();
    seconds.push(start.elapsed().as_secs_f64());
    done
}

/// Encodes prompts for a batch. Their text does not matter, but every prompt must be new, as a
/// prompt that was encoded before is not encoded again.
fn encode(pipeline: &Pipeline, sampling: &Sampling) -> secateur_models::Result<Conditioning> {
    static ENCODED: AtomicUsize = AtomicUsize::new(0);
    let text = || ENCODED.fetch_add(1, Ordering::Relaxed).to_string();
    if pipeline.folder().subject() != Subject::Text {
        return pipeline.guided_conditioning(
            &vec!["0".to_owned(); sampling.batch],
            sampling.latent,
            sampling,
        );
    }
    let prompts: Vec<String> = (0..sampling.batch).map(|_| text()).collect();
    let sampling = Sampling { negative_prompt: text(), ..sampling.clone() };
    pipeline.guided_conditioning(&prompts, sampling.latent, &sampling)
}

fn begin<'a>(
    pipeline: &'a Pipeline,
    conditioning: &'a Conditioning,
    sampling: &'a Sampling,
) -> secateur_models::Result<Denoising<'a>> {
    let (images, (height, width)) = (0..sampling.batch, sampling.latent);
    let [channels, _, _] = pipeline.folder().denoiser().latent_shape();
    let noise = noise(sampling.seed, images.clone(), 0, &[channels, height, width])?;
    Denoising::new(pipeline, &noise, conditioning, images, sampling, None)
}

impl Times {
    /// Returns the time of all steps, for each round of that many steps.
    fn denoise(&self, steps: usize) -> impl Iterator<Item = f64> {
        self.steps.chunks(steps).map(|steps| steps.iter().sum())
    }

    /// Returns the time from prompts to pictures, for each round of that many steps.
    fn batch(&self, steps: usize) -> impl Iterator<Item = f64> {
        let rounds = self.encode.iter().zip(self.denoise(steps)).zip(&self.decode);
        rounds.map(|((encode, denoise), decode)| encode + denoise + decode)
    }
}

impl Row {
    fn new(
        pipeline: &Pipeline,
        name: &str,
        times: &Times,
        sampling: &Sampling,
        peak_bytes: Option<u64>,
        product_rate: f64,
    ) -> Result<Self> {
        let folder = pipeline.folder();
        let (steps, batch) = (sampling.steps as f64, sampling.batch as f64);
        let step_seconds = Spread::of(times.denoise(sampling.steps).map(|seconds| seconds / steps));
        let image_seconds = Spread::of(times.batch(sampling.steps).map(|seconds| seconds / batch));
        let computed_macs = macs_a_call(&folder.computed_structure(sampling), sampling)?;
        let operations =
            2.0 * computed_macs as f64 * folder.samples_of_run(sampling)? as f64 * batch / steps;
        Ok(Self {
            path: folder.path().to_owned(),
            summary: model_summary(pipeline, name, sampling)?,
            computed_macs,
            peak_bytes,
            encode_seconds: Spread::of(times.encode.iter().copied()),
            step_seconds,
            decode_seconds: Spread::of(times.decode.iter().copied()),
            image_seconds,
            images_per_second: 1.0 / image_seconds.median,
            operations_per_second: operations / step_seconds.median,
            floor_seconds: operations / product_rate,
            gain: None,
        })
    }
}

impl Gain {
    /// Compares the times of a model in `after` with those in `before`. `macs` has the
    /// multiply-accumulates of both. `paired` compares step by step, otherwise the steps of each
    /// round are summed.
    fn new(before: &Times, after: &Times, macs: (u64, u64), steps: usize, paired: bool) -> Self {
        let together = if paired { 1 } else { steps };
        let sums = |times: &Times| times.denoise(together).collect::<Vec<_>>();
        let step_speed_up =
            Spread::of(sums(before).iter().zip(sums(after)).map(|(before, after)| before / after));
        let image_speed_up =
            before.batch(steps).zip(after.batch(steps)).map(|(before, after)| before / after);
        let macs_speed_up = macs.0 as f64 / macs.1 as f64;
        let saved = |speed_up: f64| 1.0 - 1.0 / speed_up;
        Self {
            step_speed_up,
            image_speed_up: Spread::of(image_speed_up),
            macs_speed_up,
            time_saved_over_macs_saved: (macs.0 != macs.1)
                .then(|| saved(step_speed_up.median) / saved(macs_speed_up)),
        }
    }
}

impl Bench {
    /// Formats one row per figure and one column per model.
    #[must_use]
    pub fn text(&self) -> String {
        fn none() -> String {
            "-".to_owned()
        }
        let header =
            std::iter::once("").chain(self.models.iter().map(|model| model.summary.name.as_str()));
        let row = |label: &str, cell: &dyn Fn(&Row) -> String| {
            std::iter::once(label.to_owned())
                .chain(self.models.iter().map(cell))
                .collect::<Vec<_>>()
        };
        let milliseconds = |spread: &Spread| spread.show(1e3, 1);
        let gain = |cell: fn(&Gain) -> String| {
            move |model: &Row| model.gain.as_ref().map_or_else(none, cell)
        };
        let mut rows = vec![
            row("parameters", &|model| count(model.summary.parameters)),
            row("zeros among them", &|model| count(model.summary.zeros)),
            row("MACs a call for one sample", &|model| count(model.summary.macs)),
            row("peak memory", &|model| model.peak_bytes.map_or_else(none, bytes)),
            row("prompts, ms", &|model| milliseconds(&model.encode_seconds)),
            row("a step, ms", &|model| milliseconds(&model.step_seconds)),
            row("decoding, ms", &|model| milliseconds(&model.decode_seconds)),
            row("an image, ms", &|model| milliseconds(&model.image_seconds)),
            row("images a second", &|model| format!("{:.3}", model.images_per_second)),
            row("floor of a step, ms", &|model| format!("{:.1}", 1e3 * model.floor_seconds)),
            row("GFLOPS", &|model| format!("{:.1}", 1e-9 * model.operations_per_second)),
        ];
        if self.models.len() > 1 {
            let share = |gain: &Gain| {
                gain.time_saved_over_macs_saved.map_or_else(none, |share| format!("{share:.2}"))
            };
            rows.push(row("speed-up of a step", &gain(|gain| gain.step_speed_up.show(1.0, 2))));
            rows.push(row("speed-up by MACs", &gain(|gain| format!("{:.2}", gain.macs_speed_up))));
            rows.push(row("time saved / MACs saved", &gain(share)));
            rows.push(row("speed-up of an image", &gain(|gain| gain.image_speed_up.show(1.0, 2))));
        }
        let on_gpu = self.gpu.as_ref().map_or_else(String::new, |gpu| format!("{gpu}; "));
        format!(
            "{}\n\nmedians (quartiles) of {} rounds of {} steps, {} image(s) at a time, {} \
             threads\n{on_gpu}{}",
            table(&header.collect::<Vec<_>>(), &rows),
            self.repeats,
            self.steps,
            self.batch,
            self.threads,
            self.product,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_work_in_three_fifths_of_the_time() {
        let before =
            Times { encode: vec![1.0; 2], steps: vec![5.0, 10.0, 5.0, 10.0], decode: vec![4.0; 2] };
        let after =
            Times { encode: vec![1.0; 2], steps: vec![3.0, 6.0, 3.0, 6.0], decode: vec![4.0; 2] };
        let gain = Gain::new(&before, &after, (200, 100), 2, true);
        assert!((gain.step_speed_up.median - 5.0 / 3.0).abs() < 1e-12);
        assert!((gain.image_speed_up.median - 20.0 / 14.0).abs() < 1e-12);
        assert_eq!(gain.macs_speed_up, 2.0);
        assert!((gain.time_saved_over_macs_saved.unwrap() - 0.8).abs() < 1e-12);
        assert!(
            Gain::new(&before, &after, (100, 100), 2, true).time_saved_over_macs_saved.is_none()
        );
    }
}
