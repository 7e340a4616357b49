//! Partial sums of an unfinished calibration on disk, from which a stopped run continues.

use crate::calibration::calibrator::Calibrator;
use crate::error::{Error, Result};
use secateur_models::files::{
    LogFile, Logged, TensorLog, digest, free_space, read_sealed, write_sealed,
};
use secateur_models::{Halfway, Observer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The files of the sums of one calibration. Each saved state has its own file of tensors. One more
/// file says which state is valid. It is written last, so that after a kill the state before is
/// still valid.
pub(crate) struct Sums<'a> {
    pub(crate) folder: &'a Path,
    /// Digest of the run's identity.
    pub(crate) run: &'a str,
    /// Number of packages that the model was pruned in before this calibration.
    pub(crate) done: usize,
    /// The package whose inputs are watched.
    pub(crate) package: usize,
    /// The time between two saves.
    pub(crate) interval: Duration,
}

/// The contents of the file that says which state is valid.
#[derive(Serialize, Deserialize)]
struct Kept {
    run: String,
    done: usize,
    package: usize,
    /// Digest of the weights of the steps.
    step_weights: String,
    /// Number of images in the sums: the first ones.
    images: usize,
    /// Calls of the denoiser, and draws of noise, of the batch after these, in which the sums were
    /// saved.
    #[serde(default)]
    begun: Option<(usize, usize)>,
    /// Digest of the file of tensors.
    digest: String,
    /// The [`Moments::tensors`](super::moments::Moments::tensors) of every input, by its name.
    moments: BTreeMap<String, [Logged; 2]>,
    /// The latents of the batch that was begun, and what its sampler keeps of earlier calls.
    latents: Option<Logged>,
    memory: Vec<Logged>,
}

/// How far a calibration has come.
#[derive(Debug, Default)]
pub(crate) struct Reached {
    /// Number of images that are done: the first ones.
    pub(crate) images: usize,
    /// The batch after these, if it was begun.
    pub(crate) halfway: Option<Halfway>,
}

/// The beginning of the names of sum files.
const PREFIX: &str = "sums-";

/// Whether a file of a journal holds sums.
pub(crate) fn is_own(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The number of images in the sums of a folder: the largest over its calibrations.
pub(crate) fn images(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let own = names.filter(|path| path.extension().is_some_and(|ending| ending == "json"));
    let own =
        own.filter(|path| path.file_name().is_some_and(|name| is_own(&name.to_string_lossy())));
    own.filter_map(|path| read_sealed::<Kept>(&path).ok())
        .map(|kept| kept.images)
        .max()
        .unwrap_or(0)
}

impl Sums<'_> {
    fn path(&self, rest: &str) -> PathBuf {
        self.folder.join(format!("{PREFIX}{:04}-{:04}{rest}", self.done, self.package))
    }

    fn tensors(&self, images: usize, begun: Option<(usize, usize)>) -> PathBuf {
        let begun = begun.map_or_else(String::new, |(calls, _)| format!("-{calls:04}"));
        self.path(&format!("-{images:06}{begun}.tensors"))
    }

    /// Loads the saved sums into the calibrator, and returns how far they go. If they are damaged,
    /// or of other step weights, it says so to the observer and returns the start.
    ///
    /// # Errors
    /// If the observer interrupts.
    pub(crate) fn load(
        &self,
        calibrator: &mut Calibrator,
        observer: &dyn Observer,
    ) -> Result<Reached> {
        let path = self.path(".json");
        if !path.exists() {
            return Ok(Reached::default());
        }
        match self.read(&path, calibrator, observer) {
            Ok(reached) => Ok(reached),
            Err(error) => {
                // Whoever interrupts does so again.
                observer.advance(0)?;
                calibrator.clear();
                observer.warn(&format!("{error}: the calibration begins anew"));
                Ok(Reached::default())
            }
        }
    }

    fn read(
        &self,
        path: &Path,
        calibrator: &mut Calibrator,
        observer: &dyn Observer,
    ) -> Result<Reached> {
        let kept: Kept = read_sealed(path)?;
        let identity = (self.run, self.done, self.package, step_weights(calibrator.weights()));
        if (kept.run.as_str(), kept.done, kept.package, kept.step_weights.clone()) != identity {
            return Err(Error::statistics(path, "is of another run or package"));
        }
        let path = self.tensors(kept.images, kept.begun);
        let all = kept.moments.values().flatten().chain(&kept.latents).chain(&kept.memory);
        let file = LogFile::open(&path, &kept.digest, all, observer)?;
        for (input, sums) in calibrator.moments_mut() {
            observer.advance(0)?;
            let found = kept.moments.get(input.as_str());
            let found =
                found.map(|[gram, others]| sums.set(&[file.read(gram)?, file.read(others)?]));
            if !found.transpose()?.unwrap_or(false) {
                return Err(Error::statistics(&path, format!("lacks the sums of {input}")));
            }
        }
        let Some((calls, draws)) = kept.begun else {
            return Ok(Reached { images: kept.images, halfway: None });
        };
        let Some(latents) = kept.latents else {
            return Err(Error::statistics(&path, "lacks the latents"));
        };
        let memory =
            kept.memory.iter().map(|logged| Ok(file.read(logged)?)).collect::<Result<_>>()?;
        let halfway = Halfway { calls, draws, latents: file.read(&latents)?, memory };
        Ok(Reached { images: kept.images, halfway: Some(halfway) })
    }

    /// Saves the sums over what was reached, one input after the other, if that leaves `reserve`
    /// bytes of the disk free.
    fn save(&self, calibrator: &Calibrator, reached: &Reached, reserve: u64) -> Result<()> {
        calibrator.check()?;
        let bytes = bytes(calibrator);
        if let Some(free) =
            free_space(self.folder).filter(|free| *free < bytes.saturating_add(reserve))
        {
            let problem = format!(
                "has {free} bytes free: the sums take {bytes}, and the new model up to {reserve}"
            );
            return Err(Error::statistics(self.folder, problem));
        }
        let (images, halfway) = (reached.images, reached.halfway.as_ref());
        let begun = halfway.map(|halfway| (halfway.calls, halfway.draws));
        let path = self.tensors(images, begun);
        let mut log = TensorLog::create(&path)?;
        let mut moments = BTreeMap::new();
        for (input, sums) in calibrator.moments() {
            let [gram, others] = sums.tensors()?;
            moments.insert(input.to_string(), [log.add(&gram)?, log.add(&others)?]);
        }
        let latents = halfway.map(|halfway| log.add(&halfway.latents)).transpose()?;
        let memory = halfway.map_or(&[][..], |halfway| &halfway.memory);
        let memory = memory.iter().map(|tensor| Ok(log.add(tensor)?)).collect::<Result<_>>()?;
        let kept = Kept {
            run: self.run.to_owned(),
            done: self.done,
            package: self.package,
            step_weights: step_weights(calibrator.weights()),
            images,
            begun,
            digest: log.finish()?,
            moments,
            latents,
            memory,
        };
        write_sealed(&self.path(".json"), &kept)?;
        self.remove_tensors(Some(&path));
        Ok(())
    }

    /// Removes all saved sums, once they are no longer needed.
    pub(crate) fn remove(&self) {
        // What stays is known to be of no use by the package that is finished.
        let _ = std::fs::remove_file(self.path(".json"));
        self.remove_tensors(None);
    }

    /// Removes the tensors of all states except `but`.
    fn remove_tensors(&self, but: Option<&PathBuf>) {
        let paths = std::fs::read_dir(self.folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let start = self.path("-");
        let own = |path: &PathBuf| {
            let name =
                |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
            name(path).zip(name(&start)).is_some_and(|(name, start)| name.starts_with(&start))
        };
        // They are written again or go with the folder.
        paths
            .filter(own)
            .filter(|path| Some(path) != but)
            .for_each(|path| drop(std::fs::remove_file(path)));
    }
}

fn step_weights(weights: &[f64]) -> String {
    digest(weights.iter().map(|weight| weight.to_le_bytes()))
}

/// Bytes of the sums of a calibrator.
fn bytes(calibrator: &Calibrator) -> u64 {
    calibrator.moments().map(|(_, moments)| (moments.numbers() * size_of::<f32>()) as u64).sum()
}

/// Decides when sums are saved.
pub(crate) struct Keeper<'a> {
    sums: Option<Sums<'a>>,
    /// Bytes of the disk that are left for the new model.
    reserve: u64,
    /// Whether the observer was told that saving fails.
    told: bool,
    kept: Instant,
    /// How long the last save took, or what the first one is taken to.
    cost: Duration,
}

impl<'a> Keeper<'a> {
    /// The default time between two saves.
    pub(crate) const INTERVAL: Duration = Duration::from_secs(60);
    /// Less than this is not worth a file when a run is stopped.
    const WORTH: Duration = Duration::from_secs(10);
    /// Saving takes at most 1 / `PARTS` of the time,
    const PARTS: u32 = 20;
    /// but so much work is never lost.
    const MOST: Duration = Duration::from_secs(300);
    /// Bytes a second that the first save is taken to write.
    const RATE: f64 = 1e9;

    /// `model`: bytes of the files of the model that is pruned.
    pub(crate) fn new(sums: Option<Sums<'a>>, calibrator: &Calibrator, model: u64) -> Self {
        let cost = Duration::from_secs_f64(bytes(calibrator) as f64 / Self::RATE);
        // New weights are written to the journal and then to the output.
        Self { sums, reserve: model.saturating_mul(2), told: false, kept: Instant::now(), cost }
    }

    /// Called after a step. Saves the sums over what was reached if it is time, or if the run is
    /// `stopped` and a file is worth it. If saving fails, it says so to the observer, once.
    pub(crate) fn step(
        &mut self,
        calibrator: &Calibrator,
        reached: &Reached,
        stopped: bool,
        observer: &dyn Observer,
    ) {
        let Some(sums) = &self.sums else { return };
        let least = match stopped {
            true => sums.interval.min(Self::WORTH),
            false => sums.interval.max((self.cost * Self::PARTS).min(Self::MOST)),
        };
        if self.kept.elapsed() < least {
            return;
        }
        let start = Instant::now();
        match sums.save(calibrator, reached, self.reserve) {
            Ok(()) => self.told = false,
            Err(_) if self.told => {}
            Err(error) => {
                self.told = true;
                observer.warn(&format!("the sums so far cannot be kept: {error}"));
            }
        }
        (self.kept, self.cost) = (Instant::now(), start.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Task;
    use crate::calibration::statistics::PackedStatistics;
    use crate::calibration::weighting::Weighting;
    use crate::calibration::{Calibration, calibrate};
    use crate::plan::{Packages, Plan, Selection};
    use crate::{Magnitude, Pattern};
    use secateur_models::{Error::Interrupted, ModelFolder, Pipeline, Sampling};
    use secateur_nn::LayerName;
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    /// Interrupts at a given step, and from then on.
    struct Stop {
        left: Cell<usize>,
        steps: Cell<usize>,
        warnings: RefCell<Vec<String>>,
    }

    impl Stop {
        fn after(left: usize) -> Self {
            Self { left: Cell::new(left), steps: Cell::new(0), warnings: RefCell::default() }
        }
    }

    impl Observer for Stop {
        fn advance(&self, amount: usize) -> secateur_models::Result<()> {
            self.left.set(self.left.get().saturating_sub(amount.min(1)));
            self.steps.set(self.steps.get() + amount);
            if self.left.get() == 0 { Err(Interrupted) } else { Ok(()) }
        }

        fn warn(&self, text: &str) {
            self.warnings.borrow_mut().push(text.to_owned());
        }
    }

    struct Scene {
        pipeline: Pipeline,
        plan: Plan,
        calibration: Calibration,
        folder: tempfile::TempDir,
    }

    /// All numbers of the statistics of an input.
    type Numbers = ([Vec<f32>; 4], f64, u64);

    const NEVER: usize = usize::MAX;

    impl Scene {
        /// Five images, two at a time, in two steps.
        fn new() -> Self {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-mmdit");
            let folder = ModelFolder::open(&path, None).unwrap();
            let sampling = Sampling { steps: 2, batch: 2, ..folder.sampling() };
            let prompts =
                folder.prompts(|prompts| &prompts.calibration).unwrap().unwrap()[..5].to_vec();
            let selection = Selection::new(&["transformer_blocks.1.*".into()], &[]).unwrap();
            let task =
                Task::Weights { method: &Magnitude, pattern: Pattern::unstructured(0.5).unwrap() };
            let plan =
                Plan::new(&folder.structure(&sampling), &selection, Packages::Count(1), &task)
                    .unwrap();
            let calibration =
                Calibration { prompts, sampling, weighting: Weighting::Uniform, token_stride: 3 };
            let pipeline = Pipeline::open(folder).unwrap();
            Self { pipeline, plan, calibration, folder: tempfile::tempdir().unwrap() }
        }

        fn sums(&self, interval: Duration) -> Sums<'_> {
            Sums { folder: self.folder.path(), run: "run", done: 0, package: 0, interval }
        }

        fn run(
            &self,
            weights: [f64; 2],
            interval: Option<Duration>,
            observer: &Stop,
        ) -> Result<BTreeMap<LayerName, Numbers>> {
            let sums = interval.map(|interval| self.sums(interval));
            let (plan, calibration) = (&self.plan.packages[0], &self.calibration);
            let stage = "calibrate";
            let found =
                calibrate(&self.pipeline, plan, calibration, &weights, sums, stage, observer)?;
            let numbers = |(name, own): (LayerName, PackedStatistics)| {
                let own = own.whole()?;
                let hessian = own.hessian.flatten_all()?.to_vec1::<f32>()?;
                let columns = [hessian, own.weighted_sums, own.sums, own.squares];
                Ok((name, (columns, own.weighted_rows, own.rows)))
            };
            found.into_iter().map(numbers).collect()
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(self.folder.path()).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    const WEIGHTS: [f64; 2] = [1.2, 0.8];
    const ALWAYS: Option<Duration> = Some(Duration::ZERO);
    const HOUR: Option<Duration> = Some(Duration::from_secs(3600));

    /// A calibration that is stopped any number of times, at any step, has bit-identical sums.
    #[test]
    fn a_calibration_that_was_stopped_goes_on() {
        let scene = Scene::new();
        let want = scene.run(WEIGHTS, None, &Stop::after(NEVER)).unwrap();
        for left in 3..6 {
            let mut runs = 0;
            let found = loop {
                runs += 1;
                match scene.run(WEIGHTS, ALWAYS, &Stop::after(left)) {
                    Ok(found) => break found,
                    Err(error) => assert_eq!(error.to_string(), Interrupted.to_string()),
                }
                assert!(runs < 20, "no run that is stopped after {left} comes farther");
            };
            assert!(runs > 1, "stopped after {left}");
            assert!(found == want, "stopped after {left}");
            assert_eq!(scene.names().len(), 2);
            scene.sums(Duration::ZERO).remove();
            assert!(scene.names().is_empty());
        }
    }

    /// No step is run twice, within a batch either.
    #[test]
    fn an_interruption_keeps_what_was_summed_up() {
        let scene = Scene::new();
        let want = scene.run(WEIGHTS, None, &Stop::after(NEVER)).unwrap();
        let whole = Stop::after(NEVER);
        scene.run(WEIGHTS, HOUR, &whole).unwrap();
        scene.run(WEIGHTS, HOUR, &Stop::after(3)).unwrap_err();
        assert!(scene.names().is_empty(), "nothing is kept of a short calibration");
        // Within the second batch.
        scene.run(WEIGHTS, ALWAYS, &Stop::after(3)).unwrap_err();
        assert_eq!(images(scene.folder.path()), 2);
        let rest = Stop::after(NEVER);
        assert!(scene.run(WEIGHTS, HOUR, &rest).unwrap() == want);
        assert_eq!((whole.steps.get(), rest.steps.get()), (10, 4));
    }

    /// Sums are not saved where the new model may need the place.
    #[test]
    fn room_is_left_for_the_model() {
        let scene = Scene::new();
        let package = &scene.plan.packages[0];
        let calibrator = Calibrator::new(package, WEIGHTS.to_vec(), 1);
        let step = |model, observer: &Stop| {
            let sums = Some(scene.sums(Duration::ZERO));
            let mut keeper = Keeper::new(sums, &calibrator, model);
            for _ in 0..2 {
                keeper.step(&calibrator, &Reached::default(), true, observer);
            }
        };
        let observer = Stop::after(NEVER);
        step(u64::MAX, &observer);
        let warnings = observer.warnings.take();
        assert!(warnings.len() == 1 && warnings[0].contains("bytes free"), "{warnings:?}");
        assert!(scene.names().is_empty());
        step(0, &observer);
        assert!(observer.warnings.take().is_empty());
        assert_eq!(scene.names().len(), 2);
    }

    /// Damaged sums are not used.
    #[test]
    fn damaged_sums_are_gathered_anew() {
        let scene = Scene::new();
        let want = scene.run(WEIGHTS, None, &Stop::after(NEVER)).unwrap();
        let tensors = "sums-0000-0000-000002-0001.tensors";
        let spoil = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
            let path = scene.folder.path().join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            change(&mut bytes);
            std::fs::write(path, bytes).unwrap();
        };
        let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
        let other = |bytes: &mut Vec<u8>| {
            *bytes = String::from_utf8(std::mem::take(bytes))
                .unwrap()
                .replace("\"images\":2", "\"images\":4")
                .into();
        };
        type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
        let cases: [(&str, &str, Change<'_>); 5] = [
            ("a bit", tensors, &flip),
            ("cut", tensors, &|bytes| bytes.truncate(1000)),
            ("empty", "sums-0000-0000.json", &|bytes| bytes.clear()),
            ("cut", "sums-0000-0000.json", &|bytes| bytes.truncate(60)),
            ("another number", "sums-0000-0000.json", &other),
        ];
        for (what, name, change) in cases {
            scene.run(WEIGHTS, ALWAYS, &Stop::after(3)).unwrap_err();
            spoil(name, change);
            let observer = Stop::after(NEVER);
            assert!(scene.run(WEIGHTS, HOUR, &observer).unwrap() == want, "{what} of {name}");
            let warnings = observer.warnings.take().concat();
            assert!(
                warnings.contains(name) && warnings.contains("begins anew"),
                "{what}: {warnings}"
            );
            scene.sums(Duration::ZERO).remove();
        }
        scene.run(WEIGHTS, ALWAYS, &Stop::after(3)).unwrap_err();
        let (observer, others) = (Stop::after(NEVER), [0.8, 1.2]);
        let found = scene.run(others, HOUR, &observer).unwrap();
        assert!(found == scene.run(others, None, &Stop::after(NEVER)).unwrap());
        assert!(observer.warnings.take().concat().contains("another run or package"));
    }
}
