//! Statistics that are carried over to a smaller model, against those of a calibration of it.

use secateur_models::{ModelFolder, Pipeline, Sampling};
use secateur_prune::{
    Calibration, InputStatistics, Magnitude, Obs, Packages, Pattern, Plan, Portion, Rows,
    Selection, Slim, Source, Statistics, StructuredMethod, Task, Weighting, prune,
};
use std::path::Path;

fn open(path: &Path) -> ModelFolder {
    ModelFolder::open(path, None).unwrap()
}

/// Relative to the length of all that are wanted.
fn close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let off = length(&mut got.iter().zip(want).map(|(got, want)| f64::from(got - want)));
    let size = length(&mut want.iter().map(|&want| f64::from(want)));
    // The new model's weights are rounded to half precision.
    assert!(off <= 2e-3 * size, "{what}: off by {off} of {size}");
}

fn alike(got: &InputStatistics, want: &InputStatistics, what: &str) {
    assert_eq!((got.rows, got.weighted_rows), (want.rows, want.weighted_rows), "{what}");
    let [ours, theirs] = [got, want].map(|one| one.hessian.flatten_all().unwrap());
    let [ours, theirs] = [ours, theirs].map(|hessian| hessian.to_vec1().unwrap());
    close(&ours, &theirs, &format!("{what}, Hessian"));
    close(&got.squares, &want.squares, &format!("{what}, squares"));
    close(&got.sums, &want.sums, &format!("{what}, sums"));
    close(&got.weighted_sums, &want.weighted_sums, &format!("{what}, weighted sums"));
}

/// Makes some of the first block smaller. At the first step nothing before that has changed, so
/// what is carried over for the inputs named is what a calibration of the new model finds; and
/// there are statistics of all its inputs.
fn carried(
    name: &str,
    prompt: &str,
    method: &dyn StructuredMethod,
    portion: Portion,
    inputs: &[&str],
) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name);
    let sampling = Sampling { steps: 1, batch: 1, ..open(&path).sampling() };
    let weighting = Weighting::Uniform;
    let calibration =
        Calibration { weighting, ..Calibration::new(vec![prompt.to_owned()], sampling) };
    let source = Source::Calibration(&calibration, &[1.0], None);
    let structure = |path: &Path| open(path).structure(&calibration.sampling);

    let selection = Selection::new(&["*blocks.0.*".to_owned()], &[]).unwrap();
    let task = Task::Structured { method, portion: Portion { keep_ends: 0, ..portion } };
    let mut plan = Plan::new(&structure(&path), &selection, Packages::Count(1), &task).unwrap();
    plan.carry(&structure(&path)).unwrap();
    let mut pipeline = Pipeline::open(open(&path)).unwrap();
    let outcome = prune(&mut pipeline, &plan, &task, &source, None, None, &()).unwrap();
    let carried: Statistics = source.carried(&plan, &outcome).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    pipeline.folder().write(temporary.path(), &outcome.edits, &()).unwrap();

    let task = Task::Weights { method: &Magnitude, pattern: Pattern::unstructured(0.5).unwrap() };
    let all = Selection::default();
    let plan = Plan::new(&structure(temporary.path()), &all, Packages::Count(1), &task).unwrap();
    let mut pipeline = Pipeline::open(open(temporary.path())).unwrap();
    let anew = prune(&mut pipeline, &plan, &task, &source, None, None, &()).unwrap().statistics;
    let widths = |statistics: &Statistics| -> Vec<_> {
        statistics
            .iter()
            .map(|(name, input)| (name.clone(), input.whole().unwrap().width()))
            .collect()
    };
    assert_eq!(widths(&carried), widths(&anew));
    for &input in inputs {
        let what = format!("{name}, {} of {input}", method.name());
        let (got, want) = (&carried[input], &anew[input]);
        let [got, want, before] =
            [got, want, &outcome.statistics[input]].map(|packed| packed.whole().unwrap());
        alike(&got, &want, &what);
        assert!(got.width() < before.width(), "{what}");
    }
}

const NONE: Portion = Portion {
    sparsity: 0.4,
    heads: false,
    neurons: false,
    query_key: false,
    value_output: false,
    keep_ends: 0,
    multiple: 1,
};

#[test]
fn value_output() {
    let portion = Portion { value_output: true, ..NONE };
    for rows in [Rows::Values, Rows::Attention] {
        let slim = Slim { rows, ..Slim::default() };
        carried("emoji-dit", "3", &slim, portion, &["transformer_blocks.0.attn1.to_out.0"]);
        let both = ["transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.attn.to_add_out"];
        carried("emoji-mmdit", "red apple", &slim, portion, &both);
    }
}

#[test]
fn heads_and_neurons() {
    let heads = Portion { heads: true, ..NONE };
    carried("emoji-dit", "3", &Obs, heads, &["transformer_blocks.0.attn1.to_out.0"]);
    let neurons = Portion { neurons: true, ..NONE };
    let both = ["transformer_blocks.0.ff.net.2", "transformer_blocks.0.ff_context.net.2"];
    carried("emoji-mmdit", "red apple", &Obs, neurons, &both);
    let slim = Slim::default();
    carried("emoji-dit", "3", &slim, neurons, &["transformer_blocks.0.ff.net.2"]);
}

#[test]
fn several_packages_carry_nothing() {
    let folder = open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-dit"));
    let structure = folder.structure(&folder.sampling());
    let task = Task::Structured { method: &Obs, portion: Portion { neurons: true, ..NONE } };
    let mut plan = Plan::new(&structure, &Selection::default(), Packages::Count(2), &task).unwrap();
    let error = plan.carry(&structure).unwrap_err().to_string();
    assert!(error.contains("`packages 1`"), "{error}");
}
