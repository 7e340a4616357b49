//! What nothing comes through or nothing reads goes first, and for free, whichever method removes
//! it.

use candle_core::{Device, Tensor};
use secateur_models::{Edits, ModelFolder, Pipeline, Sampling};
use secateur_nn::LayerName;
use secateur_prune::{
    Allocation, Amount, Calibration, Factor, Neurons, Obs, Packages, Pattern, Plan, Portion, Rows,
    Selection, Setting, Slim, Source, StructuredMethod, Task, Weighting, allocate, prune,
};
use std::ops::Range;
use std::path::Path;

/// Some rows of a weight and of its bias, or some of its columns, are zero.
enum Dead {
    Rows(&'static str, Range<usize>),
    Columns(&'static str, Range<usize>),
}
use Dead::{Columns, Rows as DeadRows};

impl Dead {
    fn apply(&self, pipeline: &mut Pipeline) {
        let (Columns(layer, range) | DeadRows(layer, range)) = self;
        let layer = LayerName::from(*layer);
        let mut edits = Edits { removals: pipeline.removals().clone(), ..Edits::default() };
        let mut clear = |parameter: String, dim: usize| {
            let old = pipeline.parameter(&parameter).unwrap().unwrap();
            let index: Vec<f32> =
                (0..old.dim(dim).unwrap()).map(|i| f32::from(!range.contains(&i))).collect();
            let shape =
                if old.rank() == 2 && dim == 0 { (index.len(), 1) } else { (1, index.len()) };
            let mask = Tensor::new(index, old.device()).unwrap().reshape(shape).unwrap();
            let new = old.broadcast_mul(&mask).unwrap().reshape(old.shape()).unwrap();
            edits.weights.insert(parameter, new.into());
        };
        match self {
            Columns(..) => clear(layer.weight(), 1),
            DeadRows(..) => {
                [layer.weight(), layer.bias()].into_iter().for_each(|parameter| clear(parameter, 0))
            }
        }
        pipeline.apply(&edits).unwrap();
    }
}

/// emoji-dit with what is dead in it, and a calibration of two steps.
fn model(dead: &[Dead]) -> (Pipeline, Calibration) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-dit");
    let folder = ModelFolder::open(&folder, None).unwrap();
    let sampling = Sampling { steps: 2, batch: 1, ..folder.sampling() };
    let mut pipeline = Pipeline::open(folder).unwrap();
    dead.iter().for_each(|dead| dead.apply(&mut pipeline));
    let weighting = Weighting::Uniform;
    (pipeline, Calibration { prompts: vec!["3".into()], sampling, weighting, token_stride: 1 })
}

fn latents(pipeline: &Pipeline, Calibration { prompts, sampling, .. }: &Calibration) -> Tensor {
    pipeline.sample(prompts, 0..1, sampling, None, &()).unwrap()
}

const UP: &str = "transformer_blocks.2.ff.net.0.proj";
const DOWN: &str = "transformer_blocks.2.ff.net.2";
const QUERY: &str = "transformer_blocks.2.attn1.to_q";
const KEY: &str = "transformer_blocks.2.attn1.to_k";
const VALUE: &str = "transformer_blocks.2.attn1.to_v";
const OUTPUT: &str = "transformer_blocks.2.attn1.to_out.0";
/// Of 768 neurons, and of 6 heads of 32 dimensions.
const SHARE: f64 = 0.5;

#[test]
fn what_is_dead_goes_for_free() {
    let neurons = Portion { heads: false, keep_ends: 0, ..Portion::new(SHARE).unwrap() };
    let heads = Portion { neurons: false, heads: true, ..neurons };
    let query_key = Portion { neurons: false, query_key: true, ..neurons };
    let value_output = Portion { neurons: false, value_output: true, ..neurons };
    let obs: &dyn StructuredMethod = &Obs;
    let slim: &dyn StructuredMethod = &Slim::default();
    let leverage: &dyn StructuredMethod = &Slim { neurons: Neurons::Leverage, ..Slim::default() };
    let attention: &dyn StructuredMethod = &Slim { rows: Rows::Attention, ..Slim::default() };
    // One head is dead as a whole, of the others half of the dimensions are.
    let dimensions = |layer: &'static str,
                      dead: fn(&'static str, Range<usize>) -> Dead|
     -> Vec<Dead> {
        (0..6)
            .map(|head| dead(layer, 32 * head + if head == 0 { 0 } else { 16 }..32 * (head + 1)))
            .collect()
    };
    let methods = [obs, slim, leverage];
    for (what, dead, portion, methods) in [
        ("a first linear of zeros", vec![DeadRows(UP, 0..768)], neurons, &methods[..]),
        ("a second linear of zeros", vec![Columns(DOWN, 0..768)], neurons, &methods),
        ("an input of zeros", vec![DeadRows(UP, 100..484)], neurons, &methods),
        ("columns of zeros", vec![Columns(DOWN, 100..484)], neurons, &methods[..2]),
        ("heads of zeros", vec![DeadRows(VALUE, 32..128)], heads, &methods[..1]),
        ("heads that nothing reads", vec![Columns(OUTPUT, 32..128)], heads, &methods[..1]),
        ("values of zeros", vec![DeadRows(VALUE, 0..192)], value_output, &[slim, attention]),
        ("an output of zeros", vec![Columns(OUTPUT, 0..192)], value_output, &[slim, attention]),
        ("queries of zeros", vec![DeadRows(QUERY, 0..192)], query_key, &[slim]),
        (
            "a head and dimensions of values",
            dimensions(VALUE, DeadRows),
            value_output,
            &[slim, attention],
        ),
        (
            "a head and dimensions of outputs",
            dimensions(OUTPUT, Columns),
            value_output,
            &[slim, attention],
        ),
        ("a head and dimensions of keys", dimensions(KEY, DeadRows), query_key, &[slim]),
    ] {
        for &method in methods {
            let what = format!("{what}, {}", method.name());
            let (mut pipeline, calibration) = model(&dead);
            let before = latents(&pipeline, &calibration);
            let task = Task::Structured { method, portion };
            let selection = Selection::new(&["transformer_blocks.2.*".into()], &[]).unwrap();
            let structure = pipeline.structure(&calibration.sampling);
            let plan = Plan::new(&structure, &selection, Packages::Count(1), &task).unwrap();
            let source = Source::Calibration(&calibration, &[1.0; 2], None);
            let outcome =
                prune(&mut pipeline, &plan, &task, &source, None, None, &()).expect(&what);
            let [group] = outcome.groups.as_slice() else {
                panic!("{what}: {} groups", outcome.groups.len())
            };
            assert_eq!(group.removed.len() * 2, group.count, "{what}");
            let square =
                |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            let off = (square(&(latents(&pipeline, &calibration) - &before).unwrap())
                / square(&before))
            .sqrt();
            // New bases are rounded to half precision; of what lives, half a group is worth 1 % and
            // more.
            assert!(off < 1e-3, "{what}: the latents differ by {off}");
        }
    }
}

#[test]
fn an_allocation_takes_what_is_dead_first() {
    let (mut pipeline, calibration) =
        model(&[DeadRows(UP, 0..768), DeadRows(VALUE, 0..192), Columns(OUTPUT, 0..192)]);
    let structure = pipeline.structure(&calibration.sampling);
    let source = Source::Calibration(&calibration, &[1.0; 2], None);
    let groups = Portion { keep_ends: 0, ..Portion::new(0.3).unwrap() };
    let weights = Pattern::Unstructured(0.3);
    for task in [
        Task::Structured { method: &Obs, portion: groups },
        Task::Structured {
            method: &Slim::default(),
            portion: Portion { query_key: false, ..Portion::slim(0.3).unwrap() },
        },
        Task::Weights { method: &Obs, pattern: weights },
    ] {
        let selection =
            Selection::new(&["*.[23].ff.net.2".into(), "*.[23].attn1.to_out.0".into()], &[])
                .unwrap();
        let plan = Plan::new(&structure, &selection, Packages::Count(1), &task).unwrap();
        let allocation = Allocation::Greedy(Amount::Parameters).into();
        let settings =
            allocate(&mut pipeline, &plan, &task, &source, &calibration, allocation, &())
                .unwrap()
                .0;
        let share = |setting: &Setting| match setting {
            Setting::Remove(count) => *count as f64,
            Setting::Pattern(pattern) => pattern.sparsity(),
        };
        assert_eq!(settings.len(), 4, "{task}");
        let (dead, live): (Vec<_>, Vec<_>) =
            settings.iter().partition(|(name, _)| name.as_str().contains(".2."));
        for ((name, dead), (_, live)) in dead.iter().zip(&live) {
            assert!(
                share(dead) > 0.0 && share(dead) > share(live),
                "{task}, {name}: {dead:?}, {live:?} of what lives"
            );
        }
    }
}

/// The inverse of what is next to nothing would not be finite.
#[test]
fn inputs_next_to_nothing_are_dead() {
    let hessian = Tensor::new(&[[1e-38f32, 0.0], [0.0, 1e-38]], &Device::Cpu).unwrap();
    let factor = Factor::new(&hessian, &"layer".into()).unwrap();
    assert_eq!((factor.dead.as_slice(), factor.damping), (&[0, 1][..], Factor::DAMPING));
}
