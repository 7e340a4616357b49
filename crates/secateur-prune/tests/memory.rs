//! What a plan says that statistics and solver take, against what they hold, by an allocator that
//! counts. One test: nothing else may run beside it.

#![expect(clippy::print_stdout, reason = "a test tells its figures")]

#[path = "../../secateur-models/tests/common/counting.rs"]
mod counting;

use secateur_models::{LayerName, ModelFolder, Pipeline, Sampling};
use secateur_prune::{
    Allocation, Amount, Calibration, Obs, Packages, Pattern, Plan, PlannedGroup, Portion,
    Selection, Slim, Source, Task, allocate, prune,
};
use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn statistics_and_solver_keep_to_the_memory_that_the_plan_says() {
    let open = || {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-mmdit");
        ModelFolder::open(&folder, None).unwrap()
    };
    let prompts = vec!["red apple, noto style emoji".to_owned()];
    // The text encoder's weights are packed at the first call; guidance would only make more
    // activations.
    let sampling = Sampling { steps: 2, batch: 1, guidance: 1.0, ..open().sampling() };
    let structure = open().structure(&sampling);
    let calibration = Calibration::new(prompts.clone(), sampling.clone());
    let weights = Task::Weights { method: &Obs, pattern: Pattern::Unstructured(0.5) };
    let groups = Task::Structured {
        method: &Obs,
        portion: Portion { keep_ends: 0, ..Portion::new(0.3).unwrap() },
    };
    let slim = Task::Structured { method: &Slim::default(), portion: Portion::slim(0.3).unwrap() };
    for task in [weights, groups, slim] {
        let selection = Selection::new(&["transformer_blocks.[0-2].*".into()], &[]).unwrap();
        let plan = |packages| Plan::new(&structure, &selection, packages, &task).unwrap();
        let whole = plan(Packages::Count(1)).bytes(&task);
        for budget in [whole, whole * 3 / 4] {
            let plan = plan(Packages::Memory(budget));
            let said = plan.bytes(&task);
            assert!(said <= budget);
            let mut pipeline = Pipeline::open(open()).unwrap();
            let sample = |pipeline: &Pipeline| {
                drop(pipeline.sample(&prompts, 0..1, &sampling, None, &()).unwrap())
            };
            sample(&pipeline);
            let call = counting::most_held(|| sample(&pipeline));
            let step_weights = calibration.step_weights(&mut pipeline, &()).unwrap();
            let source = Source::Calibration(&calibration, &step_weights, None);
            let of_allocation = counting::most_held(|| {
                let allocation = Allocation::Greedy(Amount::Parameters).into();
                drop(
                    allocate(&mut pipeline, &plan, &task, &source, &calibration, allocation, &())
                        .unwrap(),
                );
            });
            // Weights that were changed and changed back are packed again at the next call.
            sample(&pipeline);
            let of_pruning = counting::most_held(|| {
                prune(&mut pipeline, &plan, &task, &source, None, None, &()).unwrap();
            });
            // The weights of a try stand beside those of the model.
            let weights_of = |planned: &PlannedGroup| {
                let layers: BTreeSet<LayerName> =
                    planned.group.inputs().chain(planned.group.outputs()).collect();
                let of_group = structure.layers().filter(|layer| layers.contains(&layer.name));
                of_group.map(|layer| 4 * layer.operation.weights()).sum::<u64>()
            };
            let of_try = plan.groups().map(weights_of).max().unwrap_or(0) as usize;
            for (what, held, beside) in
                [("allocate", of_allocation, of_try), ("prune", of_pruning, 0)]
            {
                let told = format!(
                    "{what} {task} in {}: {held} held, {said} said, {call} a call",
                    plan.packages.len()
                );
                println!("{told}");
                let most = 1.1 * said as f64 + (call + beside) as f64;
                assert!(held as f64 <= most, "{told}");
                assert!(held as f64 >= 0.25 * said as f64, "{told}");
            }
        }
    }
}
