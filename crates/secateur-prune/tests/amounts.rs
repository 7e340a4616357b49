//! What goes and what that takes, in numbers: allocations, targets, bytes and multiply-accumulates.

use secateur_kernels::factor::inverse_factor_scratch;
use secateur_kernels::gram::add_gram_scratch;
use secateur_models::{
    Block, Layer, ModelFolder, Observer, Operation, Pipeline, Prunable, Role, Sampling, Structure,
};
use secateur_prune::{
    Allocation, Amount, Calibration, Dsnot, L1, Magnitude, Method, ModuleErrors, Neurons, Obs,
    Packages, Pattern, Plan, Portion, Rows, Selection, Setting, Slim, Source, StructuredMethod,
    Target, Task, Taylor, Wanda, Weighting, allocate, prune,
};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

fn emoji_dit() -> ModelFolder {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-dit");
    ModelFolder::open(&path, None).unwrap()
}

/// Of one picture in two steps.
fn calibration(weighting: Weighting) -> Calibration {
    let sampling = Sampling { steps: 2, batch: 1, ..emoji_dit().sampling() };
    Calibration { prompts: vec!["3".into()], sampling, weighting, token_stride: 1 }
}

#[test]
fn allocations_are_known_by_their_names() {
    use Allocation::{Greedy, Softmax, Uniform};
    let names = [
        ("uniform", Uniform),
        ("parameters", Greedy(Amount::Parameters)),
        ("macs", Greedy(Amount::Macs)),
    ];
    for (name, allocation) in names {
        assert_eq!(allocation.to_string(), name);
        assert_eq!(name.parse::<Allocation>().unwrap(), allocation);
    }
    assert_eq!(Softmax(Amount::Parameters).to_string(), "softmax-parameters");
    let error = "softmax-macs".parse::<Allocation>().unwrap_err().to_string();
    assert_eq!(
        error,
        "allocation \"softmax-macs\" is unknown; there are uniform, parameters, macs"
    );
}

#[test]
fn methods_have_the_names_of_the_command_line() {
    let methods: [&dyn Method; 5] = [&Magnitude, &Wanda, &Dsnot::Wanda, &Dsnot::Hessian, &Obs];
    let names = ["magnitude", "wanda", "dsnot", "dsnot-hessian", "obs"];
    assert_eq!(methods.map(Method::name), names);
    let (taylor, slim) =
        (Taylor::default(), Slim { rows: Rows::Attention, neurons: Neurons::Leverage });
    let methods: [&dyn StructuredMethod; 5] = [&L1, &Obs, &taylor, &Slim::default(), &slim];
    let names = ["l1", "obs", "taylor", "slim", "slim (attention, leverage)"];
    assert_eq!(methods.map(StructuredMethod::name), names);
}

/// Neurons of the two groups have as many parameters each: as many go as of the uniform share, or
/// one rounding step fewer.
#[test]
fn shares_by_influence_remove_as_much_as_the_uniform_one() {
    let mut pipeline = Pipeline::open(emoji_dit()).unwrap();
    let calibration = calibration(Weighting::Uniform);
    let source = Source::Calibration(&calibration, &[1.0; 2], None);
    let task = Task::Structured {
        method: &L1,
        portion: Portion { keep_ends: 0, ..Portion::new(0.25).unwrap() },
    };
    let selection = Selection::new(&["*.[23].ff.net.2".into()], &[]).unwrap();
    let structure = pipeline.structure(&calibration.sampling);
    let plan = Plan::new(&structure, &selection, Packages::Count(1), &task).unwrap();
    let uniform: usize = plan.groups().map(|planned| planned.remove).sum();
    assert_eq!(uniform, 2 * 768 / 4);
    for amount in [Amount::Parameters, Amount::Macs] {
        let budget = Allocation::Softmax(amount).into();
        let settings =
            allocate(&mut pipeline, &plan, &task, &source, &calibration, budget, &()).unwrap().0;
        let removed = settings.values().map(|setting| match setting {
            Setting::Remove(count) => *count,
            Setting::Pattern(_) => panic!("a pattern"),
        });
        let removed: Vec<usize> = removed.collect();
        let total: usize = removed.iter().sum();
        assert!(
            (uniform - 8..=uniform).contains(&total) && removed[0] != removed[1],
            "{amount}: {removed:?}"
        );
    }
}

/// Layers of one size: their mean share is the uniform one.
#[test]
fn shares_of_weights_by_influence_remove_as_much_as_the_uniform_one() {
    let mut pipeline = Pipeline::open(emoji_dit()).unwrap();
    let calibration = calibration(Weighting::Uniform);
    let source = Source::Calibration(&calibration, &[1.0; 2], None);
    let task = Task::Weights { method: &Magnitude, pattern: Pattern::Unstructured(0.25) };
    let selection = Selection::new(&["*.[23].ff.net.2".into()], &[]).unwrap();
    let structure = pipeline.structure(&calibration.sampling);
    let plan = Plan::new(&structure, &selection, Packages::Count(1), &task).unwrap();
    for amount in [Amount::Parameters, Amount::Macs] {
        let budget = Allocation::Softmax(amount).into();
        let settings =
            allocate(&mut pipeline, &plan, &task, &source, &calibration, budget, &()).unwrap().0;
        let shares = settings.values().map(|setting| match setting {
            Setting::Pattern(pattern) => pattern.sparsity(),
            Setting::Remove(_) => panic!("no pattern"),
        });
        let shares: Vec<f64> = shares.collect();
        let mean = shares.iter().sum::<f64>() / 2.0;
        assert!((mean - 0.25).abs() < 1e-6 && shares[0] != shares[1], "{amount}: {shares:?}");
    }
}

/// The report says what remains of a whole attention where its dimensions go, and not of neurons.
#[test]
fn errors_of_attentions_are_told() {
    let calibration = calibration(Weighting::Uniform);
    let source = Source::Calibration(&calibration, &[1.0; 2], None);
    let mut pipeline = Pipeline::open(emoji_dit()).unwrap();
    let task = Task::Structured { method: &Slim::default(), portion: Portion::slim(0.5).unwrap() };
    let selection = Selection::new(&["transformer_blocks.2.*".into()], &[]).unwrap();
    let structure = pipeline.structure(&calibration.sampling);
    let plan = Plan::new(&structure, &selection, Packages::Count(1), &task).unwrap();
    let errors = ModuleErrors::new(&pipeline, &calibration, &()).unwrap();
    let outcome = prune(&mut pipeline, &plan, &task, &source, Some(&errors), None, &()).unwrap();
    let kinds: Vec<&str> = outcome.groups.iter().map(|group| group.kind.as_str()).collect();
    assert!(kinds.contains(&"neurons") && kinds.contains(&"value-output dimensions"), "{kinds:?}");
    for group in &outcome.groups {
        let error = group.module_error;
        match group.kind.as_str() {
            "neurons" => assert_eq!(error, None),
            kind => {
                assert!(error.is_some_and(|error| error > 0.0 && error < 1.0), "{kind}: {error:?}")
            }
        }
    }
}

#[test]
fn a_target_out_of_reach_tells_the_most_that_can_go() {
    let folder = emoji_dit();
    let sampling = folder.sampling();
    let structure = folder.structure(&sampling);
    let plan = |share: f64| {
        let portion = Portion { keep_ends: 0, multiple: 1, ..Portion::new(share)? };
        Plan::new(
            &structure,
            &Selection::default(),
            Packages::Count(1),
            &Task::Structured { method: &L1, portion },
        )
    };
    let told = |amount: Amount, share: f64| {
        let target = Target::new(&folder, &sampling, amount, share).unwrap();
        assert_eq!(target.total, share * target.whole);
        target.uniform_share(&folder, &sampling, plan).unwrap_err().to_string()
    };
    assert_eq!(
        told(Amount::Parameters, 0.75),
        "75.0 % of the parameters cannot go: 80 % of what can be made smaller, the most, is 37.6 % \
         of all: \
         `budget 0.376` is the largest"
    );
    assert_eq!(
        told(Amount::Macs, 0.9),
        "10.00 times fewer multiply-accumulates cannot be had: 80 % of what can be made smaller, \
         the most, \
         is 80.1 % of all: `speedup 5.02` is the largest"
    );
    // What is the largest can be had, by the most of every group.
    let largest = Target::new(&folder, &sampling, Amount::Parameters, 0.375).unwrap();
    let share = largest.uniform_share(&folder, &sampling, plan).unwrap();
    assert!(share > 0.79 && share <= 0.8, "{share}");
}

/// Counts what is to be done and what is done.
#[derive(Default)]
struct Counts {
    begun: AtomicUsize,
    done: AtomicUsize,
}

impl Observer for Counts {
    fn begin(&self, _: &str, total: usize, _: &str) {
        self.begun.fetch_add(total, Ordering::Relaxed);
    }

    fn advance(&self, amount: usize) -> secateur_models::Result<()> {
        self.done.fetch_add(amount, Ordering::Relaxed);
        Ok(())
    }
}

/// One picture as it is, one of the noisy model, and one for each step: of two steps each.
#[test]
fn measuring_weights_takes_as_many_steps_as_it_tells() {
    let counts = Counts::default();
    let calibration = calibration(Weighting::Measured);
    calibration.step_weights(&mut Pipeline::open(emoji_dit()).unwrap(), &counts).unwrap();
    assert_eq!((counts.begun.into_inner(), counts.done.into_inner()), (4 * 2, 4 * 2));
}

/// Two layers that read an input of 6 columns, and one that reads another of 4.
fn three_layers() -> Structure {
    let layer = |name: &str, input: &str, inputs: usize, outputs: usize| Layer {
        name: name.into(),
        operation: Operation::Linear { rows: 2, inputs, outputs },
        prunable: Some(Prunable { role: Role::FeedForwardDown, input: input.into() }),
    };
    let layers = vec![layer("a", "a", 6, 3), layer("b", "a", 6, 5), layer("c", "c", 4, 10)];
    let block = Block { name: "block".into(), layers, ..Block::default() };
    Structure { blocks: vec![block], ..Structure::default() }
}

#[test]
fn bytes_and_work_of_a_plan() {
    let task = Task::Weights { method: &Magnitude, pattern: Pattern::Unstructured(0.5) };
    let plan =
        Plan::new(&three_layers(), &Selection::default(), Packages::Count(1), &task).unwrap();
    let [package] = plan.packages.as_slice() else { panic!("{} packages", plan.packages.len()) };
    assert_eq!(package.statistics_bytes(), 4 * (6 * 6 + 4 * 4));
    assert_eq!(package.largest_statistics_bytes(), 4 * 6 * 6);
    // Of the input of two layers: its Hessian, 8 bytes a weight to choose among those of the larger
    // one, and six copies of the weights of both.
    assert_eq!(package.solver_bytes(&task), 4 * 6 * 6 + 8 * 5 * 6 + 6 * 4 * (3 + 5) * 6);
    assert_eq!(plan.solver_macs(), 6 * 6 * (6 + 8 / 2) + 4 * 4 * (4 + 10 / 2));
}

#[test]
fn bytes_of_the_methods() {
    let (rows, columns) = (3, 50);
    assert_eq!(StructuredMethod::scratch(&L1, rows, columns), 8 * 50);
    assert_eq!(Magnitude.scratch(rows, columns), 8 * 3 * 50);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    assert_eq!(pool.install(|| Wanda.scratch(rows, columns)), 8 * 50 * 3);
    // The system is larger than the factor that chooses.
    let leverage = Slim { neurons: Neurons::Leverage, ..Slim::default() };
    let scratch = pool.install(|| leverage.scratch(1000, 500));
    assert_eq!(scratch, 4 * (4 * 500 * 500 + 7 * 1000 * 500));
    assert_eq!(Taylor::default().scratch(1000, 500), 0);
    // Of many rows the portion of 64 columns at a time takes the most, beside the inverse before
    // and after.
    let rows = 100_000;
    let (scratch, of_columns) = pool.install(|| {
        let of_columns = inverse_factor_scratch(64).max(add_gram_scratch(100));
        (StructuredMethod::scratch(&Obs, rows, 100), of_columns)
    });
    let portion = 64 * (2 * 64 + 4 * 100 + 2 * rows as u64) + 4 * 100 * rows as u64;
    assert_eq!(scratch, 4 * (2 * 100 * 100 + portion) + of_columns);
}
