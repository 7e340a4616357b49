//! SlimDiff's closed forms against plain sums over rows: what is predicted is what is measured, and
//! nothing does better.

#[path = "common/given.rs"]
mod given;
#[path = "common/statistics.rs"]
mod of_hessian;

use given::Given;
use of_hessian::with_hessian;
use proptest::prelude::*;
use secateur_models::{
    Between, DimensionGroup, Geometry, Group, HeadGroup, HeadStream, NeuronGroup, Pair, Removals,
    Slice, denoiser_config,
};
use secateur_nn::Kind;
use secateur_prune::{
    InputStatistics, LayerWeight, Neurons, Packages, Plan, PlannedGroup, Portion, Removed, Rows,
    Selection, Slim, StructuredMethod, Task,
};
use std::path::Path;

/// Rows x columns, row-major.
#[derive(Clone)]
struct Matrix {
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn new(columns: usize, values: Vec<f64>) -> Self {
        Self { columns, values }
    }

    /// Of a spread that falls from column to column, and a mean that is not zero, the same every
    /// time.
    fn random(rows: usize, columns: usize, seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f64 / f64::from(1 << 24) - 0.45
        };
        let values = (0..rows * columns)
            .map(|i| next() / (1.0 + (i % columns) as f64 * 0.3))
            .map(|x| f64::from(x as f32));
        Self::new(columns, values.collect())
    }

    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.columns)
    }

    /// self others^T + bias.
    fn times(&self, others: &Self, bias: Option<&[f64]>) -> Self {
        let product = |row: &[f64]| -> Vec<f64> {
            let dot = |other: &[f64]| row.iter().zip(other).map(|(a, b)| a * b).sum::<f64>();
            others
                .rows()
                .enumerate()
                .map(|(i, other)| dot(other) + bias.map_or(0.0, |bias| bias[i]))
                .collect()
        };
        Self::new(others.values.len() / others.columns, self.rows().flat_map(product).collect())
    }

    fn columns(&self, range: std::ops::Range<usize>) -> Self {
        Self::new(range.len(), self.rows().flat_map(|row| row[range.clone()].to_vec()).collect())
    }

    fn transposed(&self) -> Self {
        let rows = self.values.len() / self.columns;
        let at = |j: usize| (0..rows).map(move |i| self.values[i * self.columns + j]);
        Self::new(rows, (0..self.columns).flat_map(at).collect())
    }

    fn plus(&self, other: &Self, factor: f64) -> Self {
        Self::new(
            self.columns,
            self.values.iter().zip(&other.values).map(|(a, b)| a + factor * b).collect(),
        )
    }

    fn square(&self) -> f64 {
        self.values.iter().map(|x| x * x).sum()
    }

    fn statistics(&self) -> InputStatistics {
        let gram = self.transposed().times(&self.transposed(), None);
        let sums = (0..self.columns).map(|j| self.rows().map(|row| row[j]).sum::<f64>() as f32);
        let hessian: Vec<f32> = gram.values.iter().map(|&x| x as f32).collect();
        InputStatistics {
            weighted_sums: sums.collect(),
            weighted_rows: (self.values.len() / self.columns) as f64,
            squares: vec![1.0; self.columns],
            ..with_hessian(&hessian)
        }
    }

    fn layer(&self, name: &str) -> LayerWeight {
        let (columns, rows) = (self.columns, self.values.len() / self.columns);
        LayerWeight {
            layer: name.into(),
            rows,
            columns,
            values: self.values.iter().map(|&x| x as f32).collect(),
        }
    }
}

fn bias(length: usize, seed: u64) -> Vec<f64> {
    Matrix::random(1, length, seed).values
}

fn slice(layer: &str) -> Slice {
    Slice { layer: layer.into(), start: 0 }
}

const HEADS: usize = 3;
const WIDTH: usize = 8;

/// The heads of one stream for each suffix.
fn heads(streams: &[&str]) -> HeadGroup {
    let layer = |name: &str, stream: &str| slice(&format!("{name}{stream}"));
    let stream = |stream: &&str| HeadStream {
        query: layer("q", stream),
        key: layer("k", stream),
        value: layer("v", stream),
        output: Some(layer("out", stream)),
    };
    HeadGroup {
        name: "attn".into(),
        count: HEADS,
        query_key: WIDTH,
        value: WIDTH,
        streams: streams.iter().map(stream).collect(),
        between: Between::default(),
    }
}

fn planned(pair: Pair, streams: &[&str], rank: usize) -> [PlannedGroup; 1] {
    let group = DimensionGroup { name: "attn.pair".into(), pair, heads: heads(streams) };
    [PlannedGroup { group: Group::Dimensions(group), remove: WIDTH - rank }]
}

fn weight(removed: &Removed, layer: &str) -> Matrix {
    let weight = &removed.weights[layer];
    Matrix::new(weight.columns, weight.values.iter().map(|&x| f64::from(x)).collect())
}

fn bias_of(removed: &Removed, layer: &str) -> Vec<f64> {
    removed.biases[layer].iter().map(|&x| f64::from(x)).collect()
}

fn close(got: f64, want: f64, tolerance: f64, what: &str) {
    assert!((got - want).abs() <= tolerance * want.abs().max(1e-9), "{what}: {got}, {want} wanted");
}

/// The projections of one stream, with its inputs.
struct Stream {
    x: Matrix,
    weights: [Matrix; 2],
    biases: [Vec<f64>; 2],
}

impl Stream {
    fn new(rows: usize, inputs: usize, seed: u64) -> Self {
        let width = HEADS * WIDTH;
        let weight = |seed| Matrix::random(width, inputs, seed);
        Self {
            x: Matrix::random(rows, inputs, seed),
            weights: [weight(seed + 1), weight(seed + 2)],
            biases: [bias(width, seed + 3), bias(width, seed + 4)],
        }
    }
}

/// Q K^T of every head, all rows of all streams with each other.
fn products(queries: &[Matrix], keys: &[Matrix]) -> Vec<Matrix> {
    let join = |parts: &[Matrix], head: usize| {
        let range = head * WIDTH..(head + 1) * WIDTH;
        Matrix::new(
            WIDTH,
            parts.iter().flat_map(|part| part.columns(range.clone()).values).collect(),
        )
    };
    (0..HEADS).map(|head| join(queries, head).times(&join(keys, head), None)).collect()
}

fn error(a: &[Matrix], b: &[Matrix]) -> f64 {
    let difference: f64 = a.iter().zip(b).map(|(a, b)| a.plus(b, -1.0).square()).sum();
    difference / a.iter().map(Matrix::square).sum::<f64>()
}

#[test]
fn query_key_of_one_stream_and_of_two() {
    for names in [&[""][..], &["", "_text"]] {
        let streams: Vec<Stream> =
            (0..names.len()).map(|i| Stream::new(60 + 7 * i, 10 + i, 20 * i as u64 + 1)).collect();
        let mut given = Vec::new();
        for (name, stream) in names.iter().zip(&streams) {
            for (layer, weight) in ["q", "k"].iter().zip(&stream.weights) {
                given.push((weight.layer(&format!("{layer}{name}")), stream.x.statistics()));
            }
        }
        let mut given = Given::new(given);
        for (name, stream) in names.iter().zip(&streams) {
            for (layer, bias) in ["q", "k"].iter().zip(&stream.biases) {
                given.biases.insert(
                    format!("{layer}{name}").as_str().into(),
                    bias.iter().map(|&x| x as f32).collect(),
                );
            }
        }
        let project = |which: usize| -> Vec<Matrix> {
            streams.iter().map(|s| s.x.times(&s.weights[which], Some(&s.biases[which]))).collect()
        };
        let before = products(&project(0), &project(1));
        for rank in [1, 2, 5, 7, WIDTH] {
            let removed =
                Slim::default().remove(&planned(Pair::QueryKey, names, rank), &given).unwrap();
            assert_eq!(removed.positions, [(rank..WIDTH).collect::<Vec<_>>()]);
            let project = |layer: &str| -> Vec<Matrix> {
                let of = |(name, stream): (&&str, &Stream)| {
                    let layer = format!("{layer}{name}");
                    stream.x.times(&weight(&removed, &layer), Some(&bias_of(&removed, &layer)))
                };
                names.iter().zip(&streams).map(of).collect()
            };
            let (queries, keys) = (project("q"), project("k"));
            // Nothing is left of the dimensions that go.
            let tail = queries.iter().chain(&keys).flat_map(Matrix::rows);
            assert!(
                tail.flat_map(|row| row.chunks(WIDTH))
                    .all(|head| head[rank..].iter().all(|&x| x == 0.0))
            );
            let measured = error(&before, &products(&queries, &keys));
            let predicted = removed.errors[0].unwrap();
            let [group] = planned(Pair::QueryKey, names, rank);
            let errors = Slim::default().errors(&group.group, &[0, WIDTH - rank], &given).unwrap();
            assert_eq!(errors.unwrap()[1], predicted);
            match rank {
                WIDTH => assert!(measured < 1e-10, "at full rank: {measured}"),
                _ => close(predicted, measured, 0.01, "predicted"),
            }
        }
    }
}

/// softmax(Q K^T) with weights that add up to 1.
fn attention(rows: usize, seed: u64) -> Matrix {
    let scores = Matrix::random(rows, rows, seed);
    let soft = |row: &[f64]| {
        let total: f64 = row.iter().map(|x| (4.0 * x).exp()).sum();
        row.iter().map(|x| (4.0 * x).exp() / total).collect::<Vec<_>>()
    };
    Matrix::new(rows, scores.rows().flat_map(soft).collect())
}

#[test]
fn value_output_on_values_and_on_what_attention_makes_of_them() {
    let (rows, inputs, outputs) = (50, 11, 9);
    let stream = Stream::new(rows, inputs, 3);
    let (value, of_value) = (&stream.weights[0], &stream.biases[0]);
    let (output, of_output) = (Matrix::random(outputs, HEADS * WIDTH, 30), bias(outputs, 31));
    let mixing: Vec<Matrix> = (0..HEADS as u64).map(|head| attention(rows, 40 + head)).collect();
    let mixed = |values: &Matrix| {
        let head = |head: usize| {
            mixing[head].times(&values.columns(head * WIDTH..(head + 1) * WIDTH).transposed(), None)
        };
        let heads: Vec<Matrix> = (0..HEADS).map(head).collect();
        let row = |i: usize| {
            heads.iter().flat_map(move |head| head.values[i * WIDTH..][..WIDTH].to_vec())
        };
        Matrix::new(HEADS * WIDTH, (0..rows).flat_map(row).collect())
    };
    let by_head = |values: &Matrix, output: &Matrix| -> Vec<Matrix> {
        let range = |head: usize| head * WIDTH..(head + 1) * WIDTH;
        (0..HEADS)
            .map(|head| values.columns(range(head)).times(&output.columns(range(head)), None))
            .collect()
    };
    let values = stream.x.times(value, Some(of_value));
    let before = mixed(&values).times(&output, Some(&of_output));
    for (rows, folds) in [
        (Rows::Values, true),
        (Rows::Attention, true),
        (Rows::Values, false),
        (Rows::Attention, false),
    ] {
        let layers = vec![
            (value.layer("v"), stream.x.statistics()),
            (output.layer("out"), mixed(&values).statistics()),
        ];
        let mut given = Given::new(layers);
        given.biases.insert("v".into(), of_value.iter().map(|&x| x as f32).collect());
        if folds {
            given.biases.insert("out".into(), of_output.iter().map(|&x| x as f32).collect());
        }
        for rank in [1, 3, 6, WIDTH] {
            let slim = Slim { rows, ..Slim::default() };
            let planned = planned(Pair::ValueOutput, &[""], rank);
            let removed = slim.remove(&planned, &given).unwrap();
            let errors = slim.errors(&planned[0].group, &[WIDTH - rank], &given).unwrap();
            assert_eq!(errors, Some(vec![removed.errors[0].unwrap()]));
            let (new_value, new_output) = (weight(&removed, "v"), weight(&removed, "out"));
            let new_bias = if folds { bias_of(&removed, "out") } else { of_output.clone() };
            assert_eq!(bias_of(&removed, "v").iter().all(|&b| b == 0.0), folds);
            let new_values = stream.x.times(&new_value, Some(&bias_of(&removed, "v")));
            if rank == WIDTH {
                let after = mixed(&new_values).times(&new_output, Some(&new_bias));
                assert!(
                    error(std::slice::from_ref(&before), &[after]) < 1e-10,
                    "{rows:?}, biases folded {folds}"
                );
                continue;
            }
            // The part of a folded bias is exact, and in no product.
            let old_values = if folds { stream.x.times(value, None) } else { values.clone() };
            let (old_rows, new_rows) = match rows {
                Rows::Values => (old_values, new_values),
                Rows::Attention => (mixed(&old_values), mixed(&new_values)),
            };
            let measured = error(&by_head(&old_rows, &output), &by_head(&new_rows, &new_output));
            close(
                removed.errors[0].unwrap(),
                measured,
                0.01,
                &format!("{rows:?} at rank {rank}, folded {folds}"),
            );
        }
    }
}

/// The values of a joint attention keep their biases: its rows add up to 1 over both streams only.
#[test]
fn value_output_of_two_streams() {
    let streams: Vec<Stream> = (0..2).map(|i| Stream::new(40, 9, 20 * i + 1)).collect();
    let outputs: Vec<Matrix> = (0..2).map(|i| Matrix::random(7, HEADS * WIDTH, 70 + i)).collect();
    let mut layers = Vec::new();
    for ((name, stream), output) in ["", "_text"].iter().zip(&streams).zip(&outputs) {
        layers.push((stream.weights[0].layer(&format!("v{name}")), stream.x.statistics()));
        layers.push((
            output.layer(&format!("out{name}")),
            Matrix::random(40, HEADS * WIDTH, 9).statistics(),
        ));
    }
    let mut given = Given::new(layers);
    for (name, stream) in ["v", "v_text"].iter().zip(&streams) {
        given.biases.insert((*name).into(), stream.biases[0].iter().map(|&x| x as f32).collect());
    }
    given.biases.insert("out".into(), vec![0.0; 7]);
    let rank = 3;
    let removed =
        Slim::default().remove(&planned(Pair::ValueOutput, &["", "_text"], rank), &given).unwrap();
    assert!(!removed.biases.contains_key("out"));
    // Every row of values goes through both outputs.
    let all = |values: [Matrix; 2], outputs: [Matrix; 2]| -> Vec<Matrix> {
        let pairs =
            values.iter().flat_map(|values| outputs.iter().map(move |output| (values, output)));
        let range = |head: usize| head * WIDTH..(head + 1) * WIDTH;
        let by_head = |(values, output): (&Matrix, &Matrix)| {
            (0..HEADS)
                .map(|head| values.columns(range(head)).times(&output.columns(range(head)), None))
                .collect::<Vec<_>>()
        };
        pairs.flat_map(by_head).collect()
    };
    let old =
        [0, 1].map(|i| streams[i].x.times(&streams[i].weights[0], Some(&streams[i].biases[0])));
    let new = [(0, "v"), (1, "v_text")].map(|(i, name)| {
        streams[i].x.times(&weight(&removed, name), Some(&bias_of(&removed, name)))
    });
    let before = all(old, [outputs[0].clone(), outputs[1].clone()]);
    let after = all(new, ["out", "out_text"].map(|name| weight(&removed, name)));
    close(removed.errors[0].unwrap(), error(&before, &after), 0.01, "two streams");
}

fn feed_forward(count: usize, remove: usize) -> [PlannedGroup; 1] {
    let group =
        NeuronGroup { name: "ff".into(), count, up: vec![slice("up")], down: slice("down") };
    [PlannedGroup { group: Group::Neurons(group), remove }]
}

const BOTH: [Neurons; 2] = [Neurons::Obs, Neurons::Leverage];

#[test]
fn feed_forward_error_and_choice() {
    let (rows, count, outputs) = (200, 24, 10);
    let hidden = Matrix::random(rows, count, 5);
    let down = Matrix::random(outputs, count, 6);
    let given = Given::new(vec![(down.layer("down"), hidden.statistics())]);
    let before = [hidden.times(&down, None)];
    for (remove, neurons) in
        [1, 9, 20].into_iter().flat_map(|remove| BOTH.map(|neurons| (remove, neurons)))
    {
        let slim = Slim { neurons, ..Slim::default() };
        let planned = feed_forward(count, remove);
        let removed = slim.remove(&planned, &given).unwrap();
        let errors =
            |counts: &[usize]| slim.errors(&planned[0].group, counts, &given).unwrap().unwrap();
        assert_eq!(errors(&[0, remove]), [0.0, removed.errors[0].unwrap()]);
        // By OBS neurons are scored again at each number.
        let told = errors(&[0, 1, remove.div_ceil(2), remove]);
        assert!(told.is_sorted() && told[1] > 0.0, "{told:?}");
        close(told[3], removed.errors[0].unwrap(), 0.05, "the error of several numbers");
        let gone = &removed.positions[0];
        assert!(gone.len() == remove && gone.is_sorted());
        let new = weight(&removed, "down");
        assert!(new.rows().all(|row| gone.iter().all(|&j| row[j] == 0.0)));
        let measured = error(&before, &[hidden.times(&new, None)]);
        close(removed.errors[0].unwrap(), measured, 0.01, "the error of the down projection");
        // Columns of a falling spread: those of the least use are among the last.
        assert!(gone.iter().all(|&j| j >= (count - remove) / 2), "{gone:?}");
        // As the ridge goes to nothing, it is tr W (C - C_:J C_JJ^-1 C_J:) W^T: no other W' for
        // these neurons does better.
        for seed in 0..20 {
            let mut other = Matrix::random(outputs, count, 100 + seed);
            for row in other.values.chunks_exact_mut(count) {
                gone.iter().for_each(|&j| row[j] = 0.0);
            }
            for factor in [1e-3, -1e-3, 0.1] {
                let other = error(&before, &[hidden.times(&new.plus(&other, factor), None)]);
                assert!(other >= measured * (1.0 - 1e-6), "{other} is less than {measured}");
            }
        }
    }
}

/// A neuron that is much used by the activations and not at all by the weight goes first by OBS,
/// and last by leverage.
#[test]
fn neurons_that_nothing_reads() {
    let hidden = Matrix::random(200, 24, 5);
    let mut down = Matrix::random(10, 24, 6);
    down.values.chunks_exact_mut(24).for_each(|row| row[0] = 0.0);
    let given = Given::new(vec![(down.layer("down"), hidden.statistics())]);
    let [obs, leverage] = BOTH.map(|neurons| {
        Slim { neurons, ..Slim::default() }
            .remove(&feed_forward(24, 12), &given)
            .unwrap()
            .positions
            .remove(0)
    });
    assert!(obs.contains(&0) && !leverage.contains(&0), "{obs:?}, {leverage:?}");
}

/// The inverse is the largest in the first place and the least in the last, whatever goes together
/// with the first.
#[test]
fn neurons_of_the_least_leverage_go_first() {
    let hessian = vec![1.0, -0.6, -0.6, -0.6, 4.0, 0.0, -0.6, 0.0, 9.0];
    let statistics = InputStatistics { weighted_sums: vec![0.0; 3], ..with_hessian(&hessian) };
    let given = Given::new(vec![(Matrix::random(2, 3, 6).layer("down"), statistics)]);
    let leverage = Slim { neurons: Neurons::Leverage, ..Slim::default() };
    for (remove, gone) in [(1, &[0][..]), (2, &[0, 1])] {
        assert_eq!(leverage.remove(&feed_forward(3, remove), &given).unwrap().positions, [gone]);
    }
}

#[test]
fn what_cannot_be_solved_is_told() {
    let hidden = Matrix::new(4, vec![f64::NAN; 8]);
    let given = Given::new(vec![(Matrix::random(2, 4, 1).layer("down"), hidden.statistics())]);
    let error = Slim::default().remove(&feed_forward(4, 1), &given).unwrap_err().to_string();
    assert!(error.contains("down") && error.contains("not finite"), "{error}");
    let x = Matrix::new(5, vec![f64::INFINITY; 10]);
    let layers =
        ["q", "k"].map(|name| (Matrix::random(HEADS * WIDTH, 5, 2).layer(name), x.statistics()));
    let given = Given::new(layers.into());
    let error =
        Slim::default().remove(&planned(Pair::QueryKey, &[""], 3), &given).unwrap_err().to_string();
    assert!(error.contains("attn") && error.contains("not finite"), "{error}");
}

/// By shapes: 100 M of SD-1.5's 859.5 M parameters can go, 11.6 %.
#[test]
fn a_hundred_million_parameters_of_sd_1_5() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/full_size/sd-1.5/unet/config.json");
    let config = denoiser_config(&path).unwrap();
    let structure = |removals: &Removals| {
        config.describe(removals).unwrap().at(&Geometry { latent: (64, 64), text: 77 })
    };
    let whole_structure = structure(&Removals::default());
    let parameters = |removals: &Removals| -> usize {
        let wanted = config.parameters(removals).unwrap();
        wanted
            .values()
            .filter(|wanted| wanted.kind != Kind::Constant)
            .map(|wanted| wanted.shape.iter().product::<usize>())
            .sum()
    };
    let whole = parameters(&Removals::default());
    assert_eq!(whole, 859_520_964);
    let slim = Slim::default();
    let at = |share: f64| {
        let task = Task::Structured { method: &slim, portion: Portion::slim(share).unwrap() };
        let plan =
            Plan::new(&whole_structure, &Selection::default(), Packages::Count(1), &task).unwrap();
        // Query-key, value-output and feed-forward of 16 blocks, two attentions each.
        assert_eq!(plan.groups().count(), 16 * 5);
        plan.removals(&Removals::default())
    };
    let removals = at(0.43);
    let gone = whole - parameters(&removals);
    let fewer = whole_structure.macs() as f64 / structure(&removals).macs() as f64;
    assert!(
        (100_000_000..115_000_000).contains(&gone) && fewer > 1.1,
        "{gone} parameters, {fewer} times fewer"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// No other factors of the rank do better: neither small changes of ours, nor others.
    #[test]
    fn query_key_is_the_best_of_its_rank(rank in 1usize..WIDTH, seed in 0u64..1000) {
        let stream = Stream::new(40, 12, seed);
        let layers = ["q", "k"].iter().zip(&stream.weights).map(|(name,
            weight)| (weight.layer(name),
            stream.x.statistics()));
        let given = Given::new(layers.collect());
        let removed = Slim::default().remove(&planned(Pair::QueryKey, &[""], rank),
            &given).unwrap();
        let project = |weight: &Matrix| vec![stream.x.times(weight, None)];
        let before = products(&project(&stream.weights[0]), &project(&stream.weights[1]));
        let (q, k) = (weight(&removed, "q"), weight(&removed, "k"));
        let ours = error(&before, &products(&project(&q), &project(&k)));
        let mut competitor = [Matrix::random(HEADS * WIDTH, 12, seed + 7),
            Matrix::random(HEADS * WIDTH, 12, seed + 8)];
        for matrix in &mut competitor {
            for (row, values) in matrix.values.chunks_exact_mut(12).enumerate() {
                if row % WIDTH >= rank {
                    values.fill(0.0);
                }
            }
        }
        for factor in [1e-3, -1e-2, 0.3] {
            let (q, k) = (q.plus(&competitor[0], factor), k.plus(&competitor[1], factor));
            let other = error(&before, &products(&project(&q), &project(&k)));
            prop_assert!(other >= ours * (1.0 - 1e-5), "{other} is less than {ours}");
        }
    }
}
