//! What a journal keeps of a run is taken from it, and nothing else is.

use secateur_models::{ModelFolder, Observer, Pipeline, Sampling};
use secateur_prune::{
    Allocation, Calibration, Fingerprint, Identity, Journal, L1, Magnitude, Outcome, Packages,
    Pattern, Plan, Portion, Selection, Source, Task, Weighting, prune,
};
use std::path::Path;
use std::sync::Mutex;

/// The stages and warnings that an observer gets.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Observer for Told {
    fn begin(&self, stage: &str, _: usize, _: &str) {
        self.0.lock().unwrap().push(stage.to_owned());
    }

    fn warn(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

fn open() -> Pipeline {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-dit");
    Pipeline::open(ModelFolder::open(&path, None).unwrap()).unwrap()
}

#[test]
fn finished_packages_are_taken_from_the_journal_if_they_are_the_plan_s() {
    let sampling = Sampling { steps: 1, batch: 1, ..open().folder().sampling() };
    let weighting = Weighting::Uniform;
    let calibration = Calibration { weighting, ..Calibration::new(vec!["3".into()], sampling) };
    let fingerprint = Fingerprint::new(open().folder(), &calibration, &()).unwrap();
    let structure = open().structure(&calibration.sampling);
    let source = Source::Calibration(&calibration, &[1.0], None);
    for task in [
        Task::Weights { method: &Magnitude, pattern: Pattern::Unstructured(0.5) },
        Task::Structured { method: &L1, portion: Portion::new(0.5).unwrap() },
    ] {
        let plan = |block: usize| {
            let selection =
                Selection::new(&[format!("transformer_blocks.{block}.*")], &[]).unwrap();
            Plan::new(&structure, &selection, Packages::Count(1), &task).unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let run =
            Identity::new(&fingerprint, 1, &plan(2), &task, Allocation::Uniform.into(), None, None)
                .unwrap();
        let journal = Journal::create(folder.path(), &run).unwrap();
        assert_eq!(journal.finished(), (0, 0));
        let pruned = |plan: &Plan| -> (Outcome, Vec<String>) {
            let told = Told::default();
            let outcome =
                prune(&mut open(), plan, &task, &source, None, Some(&journal), &told).unwrap();
            (outcome, told.0.into_inner().unwrap())
        };
        let (first, stages) = pruned(&plan(2));
        assert_eq!(stages, ["calibrate", "solve"], "{task}");
        assert_eq!(journal.finished(), (1, 0));
        let (again, stages) = pruned(&plan(2));
        assert!(stages.is_empty(), "{task}: {stages:?}");
        assert_eq!((&again.layers, &again.groups), (&first.layers, &first.groups));
        assert!(again.edits.weights.keys().eq(first.edits.weights.keys()));
        // Another block's layers.
        let (_, stages) = pruned(&plan(3));
        let [warning, rest @ ..] = stages.as_slice() else { panic!("{task}: no warning") };
        assert!(
            warning.ends_with("has other layers than the plan: package 1 is done again"),
            "{warning}"
        );
        assert_eq!(rest, ["calibrate", "solve"], "{task}");
    }
}
