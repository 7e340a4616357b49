//! Jobs through the library: the same results as the program's, progress for an observer, and the
//! end that it asks for.

mod common;
use common::{entries, fail, model, secateur, succeed};
use secateur::settings::{ModelSettings, PruneSettings, SamplingSettings, SharedSettings};
use secateur::{MethodSettings, Observer, Recipe};
use secateur_models::Error::Interrupted;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

fn recipe(out: Option<&Path>) -> Recipe {
    let mut shared = SharedSettings {
        sampling: SamplingSettings { steps: 2.try_into().ok(), ..SamplingSettings::default() },
        ..SharedSettings::default()
    };
    shared.prompts.samples = 2.try_into().ok();
    shared.prompts.report_samples = 0.try_into().ok();
    let method = PruneSettings { pattern: Some("2:4".into()), shared, ..PruneSettings::default() };
    let model = ModelSettings { model: Some(model("emoji-dit")), variant: None };
    let recipe = Recipe::of(model, MethodSettings::Prune(method));
    Recipe { out: out.map(Path::to_owned), ..recipe }
}

/// Keeps the names of stages, and stops the work after a number of calls.
#[derive(Default)]
struct Watching {
    stages: Mutex<Vec<String>>,
    calls: AtomicUsize,
    stop: Option<usize>,
}

impl Observer for Watching {
    fn begin(&self, stage: &str, _: usize, _: &str) {
        self.stages.lock().unwrap().push(stage.into());
    }

    fn advance(&self, _: usize) -> secateur_models::Result<()> {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        if self.stop.is_some_and(|stop| calls >= stop) { Err(Interrupted) } else { Ok(()) }
    }
}

#[test]
fn the_library_does_what_the_program_does() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let watching = Watching::default();
    let out = at("library");
    let plan = secateur::plan(&recipe(None), &()).unwrap();
    assert!(plan.text.contains("2:4 by obs"), "{}", plan.text);
    let report = secateur::run(&recipe(Some(&out)), &watching).unwrap();
    let stages = watching.stages.lock().unwrap();
    for stage in ["load", "calibrate", "solve", "save"] {
        assert!(stages.iter().any(|name| name.starts_with(stage)), "{stage}: {stages:?}");
        assert!(report.stages.iter().any(|of_report| of_report.name == stage), "{stage}");
    }
    // The recipe is data.
    let told = serde_json::from_str::<Recipe>(&report.command).unwrap();
    assert_eq!(told.methods, recipe(None).methods);
    assert_eq!(told.out.as_deref(), Some(&*out));

    let program = at("program");
    let options = ["--pattern=2:4", "--steps=2", "--samples=2", "--report-samples=0", "--quiet"];
    let mut command = secateur();
    succeed(command.arg("prune").arg(model("emoji-dit")).args(options).arg("--out").arg(&program));
    let weights = |out: &Path| {
        std::fs::read(out.join("transformer/diffusion_pytorch_model.safetensors")).unwrap()
    };
    assert!(weights(&out) == weights(&program));
}

#[test]
fn an_observer_stops_the_work_and_it_goes_on() {
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("new");
    let all = Watching::default();
    secateur::run(&recipe(Some(&out)), &all).unwrap();
    let weights =
        || std::fs::read(out.join("transformer/diffusion_pytorch_model.safetensors")).unwrap();
    let whole = weights();
    let calls = all.calls.load(Ordering::Relaxed);
    for stop in [calls / 3, calls - 1] {
        std::fs::remove_dir_all(&out).unwrap();
        let stopping = Watching { stop: Some(stop), ..Watching::default() };
        let error = secateur::run(&recipe(Some(&out)), &stopping).unwrap_err();
        assert!(error.is_interruption() && !error.is_request(), "{error}");
        assert!(!out.exists());
        let resume = out.with_file_name(".new.secateur").exists();
        secateur::run(&Recipe { resume, ..recipe(Some(&out)) }, &()).unwrap();
        assert_eq!(entries(temporary.path()), ["new"]);
        assert!(weights() == whole, "stopped at call {stop} of {calls}");
    }
}

#[test]
fn a_wrong_request_is_told_from_failed_work() {
    let methods = [
        PruneSettings { sparsity: Some(2.0), ..PruneSettings::default() },
        PruneSettings { pattern: Some("4:2".into()), ..PruneSettings::default() },
    ];
    for method in methods {
        let of = Recipe { methods: vec![MethodSettings::Prune(method)], ..recipe(None) };
        let error = secateur::plan(&of, &()).unwrap_err();
        assert!(error.is_request(), "{error}");
    }
    fail(secateur().args(["prune", "models/emoji-dit", "--pattern=4:2", "--dry-run"]), 2);
    let error = secateur::run(&recipe(None), &()).unwrap_err();
    assert!(error.is_request() && error.to_string().contains("`out DIR` is needed"), "{error}");
    let nowhere = ModelSettings { model: Some("no/such/model".into()), variant: None };
    let error = secateur::plan(&Recipe { model: nowhere, ..recipe(None) }, &()).unwrap_err();
    assert!(!error.is_interruption(), "{error}");
}
