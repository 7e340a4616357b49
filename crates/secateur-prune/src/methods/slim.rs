//! SlimDiff, reconstructed from its abstract and summaries (Yang et al. 2025, arXiv 2509.21498) and
//! from its predecessor MoDeGPT (Lin et al. 2024, arXiv 2408.09632). It gives query-key and
//! value-output products a low rank, and removes neurons, by the second moments of activations.

use crate::calibration::{
    Calibration, Factor, InputStatistics, damped_factor, diagonal, hessian_error, indices, without,
};
use crate::error::{Error, Result};
use crate::methods::low_rank::LowRank;
use crate::methods::method::LayerWeight;
use crate::methods::obs::Obs;
use crate::methods::obs::structured::least_columns;
use crate::methods::structured::{Layers, Removed, StructuredMethod, lowest};
use crate::methods::turn::{Turn, turn};
use crate::plan::{Plan, PlannedGroup};
use candle_core::{DType, Device, Tensor};
use faer::Mat;
use rayon::prelude::*;
use secateur_models::{
    DimensionGroup, Group, HeadGroup, NeuronGroup, Observer, Pair, Pipeline, Slice,
};
use secateur_nn::{LayerName, Weight, ops, to_device};

/// Module-aligned decompositions: of query and key together, of value and output together, and of
/// the two halves of a feed-forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slim {
    /// The rows that the error of value and output is measured on.
    pub rows: Rows,
    /// How neurons are chosen.
    pub neurons: Neurons,
}

/// The rows for which || V W_o - V' W_o' ||_F is minimised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rows {
    /// The values of all tokens.
    #[default]
    Values,
    /// The outputs of attention, which are the input of the output projection.
    Attention,
}

/// How the neurons J to keep are chosen, given the second moments C of the input of the down
/// projection W.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Neurons {
    /// The least increase of || H (W - W')^T ||_F^2 by OBS, which also depends on W.
    #[default]
    Obs,
    /// The highest ridge leverage [C (C + lam I)^-1]_ii, as in MoDeGPT.
    Leverage,
}

/// A weight with a larger share of zeros (see [`zeros`]) counts as pruned.
const ZEROS: f64 = 0.1;

/// The value added to the diagonal of C to score neurons, relative to the mean of the diagonal.
const TO_SCORE: f64 = Factor::DAMPING;

/// The value added to solve for the columns that are left, relative likewise.
const TO_SOLVE: f64 = 1e-3;

/// How many times that value is multiplied by ten if C_JJ is not positive definite.
const ESCALATIONS: i32 = 4;

impl StructuredMethod for Slim {
    fn name(&self) -> &'static str {
        match (self.rows, self.neurons) {
            (Rows::Values, Neurons::Obs) => "slim",
            (Rows::Values, Neurons::Leverage) => "slim (leverage)",
            (Rows::Attention, Neurons::Obs) => "slim (attention)",
            (Rows::Attention, Neurons::Leverage) => "slim (attention, leverage)",
        }
    }

    fn watched(&self, group: &Group) -> Vec<LayerName> {
        match group {
            Group::Dimensions(DimensionGroup { pair: Pair::ValueOutput, .. })
                if self.rows == Rows::Values =>
            {
                group.inputs().collect()
            }
            Group::Dimensions(DimensionGroup { pair: Pair::QueryKey, .. }) => {
                group.inputs().collect()
            }
            _ => group.outputs().collect(),
        }
    }

    /// Fails on weights with many zeros, which low rank would fill in.
    fn prepare(
        &self,
        pipeline: &Pipeline,
        plan: &Plan,
        _: &Calibration,
        observer: &dyn Observer,
    ) -> Result<()> {
        for PlannedGroup { group, .. } in plan.groups() {
            observer.advance(0)?;
            // The rows of neurons stay as they are.
            let inputs = matches!(group, Group::Dimensions(_)).then(|| group.inputs());
            for layer in inputs.into_iter().flatten().chain(group.outputs()) {
                let Some(weight) = pipeline.parameter(&layer.weight())? else { continue };
                let zeros = zeros(&weight.to_vec2::<f32>()?);
                if zeros > ZEROS {
                    let problem = format!(
                        "{:.0} % of its weights are zero, which low rank would fill in: make the \
                         model smaller first and remove single weights afterwards, or `exclude` \
                         the layer",
                        100.0 * zeros
                    );
                    return Err(Error::layer(&layer, problem));
                }
            }
        }
        Ok(())
    }

    fn remove(&self, groups: &[PlannedGroup], layers: &dyn Layers) -> Result<Removed> {
        let mut edit = Edit { layers, removed: Removed::default() };
        for PlannedGroup { group, remove } in groups {
            let (positions, error) = match group {
                Group::Dimensions(dimensions) => {
                    let rank = group.count() - remove;
                    let error = match dimensions.pair {
                        Pair::QueryKey => edit.query_key(&dimensions.heads, rank)?,
                        Pair::ValueOutput => {
                            edit.value_output(&dimensions.heads, rank, self.rows)?
                        }
                    };
                    ((rank..group.count()).collect(), error)
                }
                Group::Neurons(neurons) => edit.remove_neurons(neurons, *remove, self.neurons)?,
                Group::Heads(heads) => {
                    return Err(Error::layer(&heads.name, "SlimDiff removes no whole heads"));
                }
            };
            edit.removed.positions.push(positions);
            edit.removed.errors.push(Some(error));
        }
        Ok(edit.removed)
    }

    fn errors(
        &self,
        group: &Group,
        counts: &[usize],
        layers: &dyn Layers,
    ) -> Result<Option<Vec<f64>>> {
        let edit = Edit { layers, removed: Removed::default() };
        let errors = match group {
            Group::Dimensions(DimensionGroup { pair, heads, .. }) => {
                let bases = match pair {
                    Pair::QueryKey => edit.bases_of_query_key(heads)?,
                    Pair::ValueOutput => {
                        let bias = edit.folded_bias(heads)?;
                        edit.bases_of_value_output(heads, bias.as_deref(), self.rows)?
                    }
                };
                let rank = |count: &usize| group.count() - count;
                counts.iter().map(|count| relative_tail(&bases, rank(count))).collect()
            }
            Group::Neurons(neurons) => {
                let feed_forward = edit.feed_forward(neurons, self.neurons, counts)?;
                let error = |&count: &usize| Ok(feed_forward.without(count)?.error);
                counts.iter().map(error).collect::<Result<_>>()?
            }
            Group::Heads(_) => return Ok(None),
        };
        Ok(Some(errors))
    }

    fn scratch(&self, rows: usize, columns: usize) -> u64 {
        // A feed-forward: what chooses, then C_JJ, its factor and that transposed, and rows.
        let of = |numbers: usize| (numbers * size_of::<f32>()) as u64;
        let to_solve = of(4 * columns * columns + 7 * rows * columns);
        let to_choose = match self.neurons {
            Neurons::Obs => StructuredMethod::scratch(&Obs, rows, columns),
            Neurons::Leverage => Factor::scratch(columns),
        };
        to_choose.max(to_solve)
    }
}

/// Returns the share of zeros in the rows and columns that are not all zero. Rows and columns of
/// zeros stay zero in low rank.
fn zeros(rows: &[Vec<f32>]) -> f64 {
    let is_live = |row: &[f32]| row.iter().any(|&w| w != 0.0);
    let rows: Vec<_> = rows.iter().filter(|row| is_live(row)).collect();
    let width = rows.first().map_or(0, |row| row.len());
    let columns: Vec<usize> =
        (0..width).filter(|&column| rows.iter().any(|row| row[column] != 0.0)).collect();
    let zeros = rows
        .iter()
        .map(|row| columns.iter().filter(|&&column| row[column] == 0.0).count())
        .sum::<usize>();
    zeros as f64 / (rows.len() * columns.len()).max(1) as f64
}

/// Weights and biases that are being edited.
struct Edit<'a> {
    layers: &'a dyn Layers,
    removed: Removed,
}

impl Edit<'_> {
    /// Returns the weight of a layer with the edits so far.
    fn weight(&self, layer: &LayerName) -> Result<LayerWeight> {
        self.removed.weights.get(layer).cloned().map_or_else(|| self.layers.weight(layer), Ok)
    }

    fn bias(&self, layer: &LayerName) -> Result<Option<Vec<f32>>> {
        self.removed
            .biases
            .get(layer)
            .cloned()
            .map_or_else(|| self.layers.bias(layer), |bias| Ok(Some(bias)))
    }

    /// Minimises || Q K^T - Q' K'^T ||_F over all pairs of rows of queries and keys, before the
    /// softmax. Returns its square relative to || Q K^T ||_F^2, over all heads. The streams of a
    /// joint attention share the dimensions of a head.
    fn query_key(&mut self, heads: &HeadGroup, rank: usize) -> Result<f64> {
        let bases = self.bases_of_query_key(heads)?;
        for stream in &heads.streams {
            self.turn_rows(&stream.query, &bases, rank, |basis| &basis.left)?;
            self.turn_rows(&stream.key, &bases, rank, |basis| &basis.right)?;
        }
        Ok(relative_tail(&bases, rank))
    }

    fn bases_of_query_key(&self, heads: &HeadGroup) -> Result<Vec<LowRank>> {
        let (mut of_queries, mut of_keys) = (
            Grams::zeros(heads.count, heads.query_key),
            Grams::zeros(heads.count, heads.query_key),
        );
        for stream in &heads.streams {
            of_queries.add(&self.projected(&stream.query, heads.count, heads.query_key, true)?);
            of_keys.add(&self.projected(&stream.key, heads.count, heads.query_key, true)?);
        }
        bases(&heads.name, &of_queries, &of_keys)
    }

    /// Minimises || V W_o - V' W_o' ||_F. Returns its square relative to || V W_o ||_F^2, over all
    /// heads.
    fn value_output(&mut self, heads: &HeadGroup, rank: usize, rows: Rows) -> Result<f64> {
        let bias = self.folded_bias(heads)?;
        let bases = self.bases_of_value_output(heads, bias.as_deref(), rows)?;
        if let Some(bias) = &bias {
            self.fold(heads, bias)?;
        }
        for stream in &heads.streams {
            self.turn_rows(&stream.value, &bases, rank, |basis| &basis.left)?;
            if let Some(output) = &stream.output {
                self.turn_columns(output, &bases, rank)?;
                let Slice { layer, start } = output.clone();
                self.removed.turns.push(Turn {
                    layer,
                    start,
                    offset: bias.clone(),
                    bases: bases.clone(),
                    rank,
                });
            }
        }
        Ok(relative_tail(&bases, rank))
    }

    /// `bias`: of the values, if it is folded.
    fn bases_of_value_output(
        &self,
        heads: &HeadGroup,
        bias: Option<&[f32]>,
        rows: Rows,
    ) -> Result<Vec<LowRank>> {
        let mut of_values = Grams::zeros(heads.count, heads.value);
        let mut of_outputs = Grams::zeros(heads.count, heads.value);
        for stream in &heads.streams {
            if rows == Rows::Values {
                of_values.add(&self.projected(
                    &stream.value,
                    heads.count,
                    heads.value,
                    bias.is_none(),
                )?);
            }
            let Some(output) = &stream.output else { continue };
            if rows == Rows::Attention {
                let statistics = self.layers.statistics(&output.layer)?;
                of_values.add(&Grams::of_input(statistics, output.start, heads, bias)?);
            }
            of_outputs.add(&Grams::of_columns(&self.weight(&output.layer)?, output.start, heads));
        }
        bases(&heads.name, &of_values, &of_outputs)
    }

    /// Returns the bias of the values if it can be folded into that of the output projection. The
    /// rows of the attention matrix sum to 1, so with one stream the bias reaches the output
    /// unchanged.
    fn folded_bias(&self, heads: &HeadGroup) -> Result<Option<Vec<f32>>> {
        let [stream] = heads.streams.as_slice() else { return Ok(None) };
        let Some(output) = &stream.output else { return Ok(None) };
        let bias = match self.bias(&output.layer)? {
            Some(_) => self.bias(&stream.value.layer)?,
            None => None,
        };
        Ok(bias.map(|bias| bias[stream.value.start..][..heads.count * heads.value].to_vec()))
    }

    /// Multiplies the bias of the values by the output projection, and adds it to the projection's
    /// bias.
    fn fold(&mut self, heads: &HeadGroup, bias: &[f32]) -> Result<()> {
        let [stream] = heads.streams.as_slice() else { return Ok(()) };
        let (Some(output), value) = (&stream.output, &stream.value) else { return Ok(()) };
        let weight = self.weight(&output.layer)?;
        let mut of_output = self.bias(&output.layer)?.unwrap_or_else(|| vec![0.0; weight.rows]);
        for (sum, row) in
            of_output.iter_mut().zip(weight.values.chunks_exact(weight.columns.max(1)))
        {
            let product = row[output.start..]
                .iter()
                .zip(bias)
                .map(|(&w, &b)| f64::from(w) * f64::from(b))
                .sum::<f64>();
            *sum = (f64::from(*sum) + product) as f32;
        }
        self.removed.biases.insert(output.layer.clone(), of_output);
        if let Some(mut of_values) = self.bias(&value.layer)? {
            of_values[value.start..][..bias.len()].fill(0.0);
            self.removed.biases.insert(value.layer.clone(), of_values);
        }
        Ok(())
    }

    /// Returns the Gram matrix of each head of x W^T + b, or without b, for the inputs x of the
    /// layer.
    fn projected(
        &self,
        slice: &Slice,
        count: usize,
        width: usize,
        with_bias: bool,
    ) -> Result<Grams> {
        let (weight, statistics) =
            (self.weight(&slice.layer)?, self.layers.statistics(&slice.layer)?);
        let bias = if with_bias { self.bias(&slice.layer)? } else { None };
        let rows = &weight.values[slice.start * weight.columns..][..count * width * weight.columns];
        let bias = bias.as_deref().map(|bias| &bias[slice.start..][..count * width]);
        Grams::projected(rows, bias, statistics, (count, width))
    }

    /// Multiplies the rows of a slice by the bases of their heads, and sets dimensions from `rank`
    /// on to zero.
    fn turn_rows(
        &mut self,
        slice: &Slice,
        bases: &[LowRank],
        rank: usize,
        basis: fn(&LowRank) -> &Mat<f64>,
    ) -> Result<()> {
        let mut weight = self.weight(&slice.layer)?;
        let columns = weight.columns;
        let rows = &mut weight.values[slice.start * columns..];
        turn(rows, columns, bases, rank, basis);
        if let Some(mut bias) = self.bias(&slice.layer)? {
            turn(&mut bias[slice.start..], 1, bases, rank, basis);
            self.removed.biases.insert(slice.layer.clone(), bias);
        }
        self.removed.weights.insert(slice.layer.clone(), weight);
        Ok(())
    }

    /// Multiplies the columns of a slice by the right bases likewise.
    fn turn_columns(&mut self, slice: &Slice, bases: &[LowRank], rank: usize) -> Result<()> {
        let mut weight = self.weight(&slice.layer)?;
        weight.values.par_chunks_exact_mut(weight.columns.max(1)).for_each(|row| {
            turn(&mut row[slice.start..], 1, bases, rank, |basis| &basis.right);
        });
        self.removed.weights.insert(slice.layer.clone(), weight);
        Ok(())
    }

    /// Removes neurons. Returns them, ascending, and [`WithoutNeurons::error`].
    fn remove_neurons(
        &mut self,
        neurons: &NeuronGroup,
        remove: usize,
        by: Neurons,
    ) -> Result<(Vec<usize>, f64)> {
        let NeuronGroup { count, down: Slice { layer, start }, .. } = neurons;
        let WithoutNeurons { gone, weight: after, error } =
            self.feed_forward(neurons, by, &[remove])?.without(remove)?;
        let mut weight = self.weight(layer)?;
        ops::with_values(&after, |after| {
            let rows = weight.values.chunks_exact_mut(weight.columns);
            for (all, after) in rows.zip(after.chunks_exact((*count).max(1))) {
                all[*start..][..*count].copy_from_slice(after);
            }
        })?;
        self.removed.weights.insert(layer.clone(), weight);
        Ok((gone, error))
    }

    /// `counts`: how many neurons will be removed, ascending.
    fn feed_forward(
        &self,
        neurons: &NeuronGroup,
        by: Neurons,
        counts: &[usize],
    ) -> Result<FeedForward> {
        let NeuronGroup { count, down: Slice { layer, start }, .. } = neurons;
        let hessian = &self.layers.statistics(layer)?.hessian;
        let c = hessian.narrow(0, *start, *count)?.narrow(1, *start, *count)?.contiguous()?;
        let LayerWeight { rows, columns, values, .. } = self.weight(layer)?;
        let own = |row: &[f32]| row[*start..][..*count].to_vec();
        let values: Vec<f32> = values.chunks_exact(columns).flat_map(own).collect();
        let down = LayerWeight { layer: layer.clone(), rows, columns: *count, values };
        let weight = down.tensor(c.device())?;
        let order = match by {
            Neurons::Obs => least_columns(down, &c, counts)?,
            Neurons::Leverage => lowest(&leverages(&c, layer)?, *count),
        };
        Ok(FeedForward { layer: layer.clone(), weight, c, order })
    }
}

/// The neurons of a feed-forward.
struct FeedForward {
    layer: LayerName,
    /// Of the down projection, outputs x neurons.
    weight: Tensor,
    /// The second moments of the neurons, neurons x neurons.
    c: Tensor,
    /// The neurons to remove, those that are missed least first.
    order: Vec<usize>,
}

/// A feed-forward that lost neurons.
struct WithoutNeurons {
    /// The neurons, ascending.
    gone: Vec<usize>,
    /// As [`FeedForward::weight`], with zeros for these.
    weight: Tensor,
    /// tr(D C D^T) / tr(W C W^T), for the difference D of the weights W.
    error: f64,
}

impl FeedForward {
    /// Removes `count` neurons by Nystrom. With the second moments C of the down projection's
    /// input, W'_J = W_J + W_S C_SJ (C_JJ + lam I)^-1 corrects for the removed neurons S. It is W_J
    /// if their activations or their weights are all zero.
    fn without(&self, count: usize) -> Result<WithoutNeurons> {
        let mut gone = self.order[..count].to_vec();
        gone.sort_unstable();
        let weight = nystrom(&self.weight, &self.c, &gone, &self.layer)?;
        let error = hessian_error(&self.weight, &weight, &self.c)?;
        Ok(WithoutNeurons { gone, weight, error })
    }
}

/// Returns W'_J = W_J + W_S C_SJ (C_JJ + lam I)^-1 in the columns J of a weight W (rows x n) that
/// are kept, and zeros in the others, S, for C (n x n).
fn nystrom(weight: &Tensor, c: &Tensor, gone: &[usize], layer: &LayerName) -> Result<Tensor> {
    let (rows, count) = weight.dims2()?;
    let kept: Vec<usize> =
        (0..count).filter(|neuron| gone.binary_search(neuron).is_err()).collect();
    if rows == 0 || gone.is_empty() || kept.is_empty() {
        return without(weight, gone);
    }
    let device = weight.device();
    let at_kept = indices(&kept, device)?;
    let of_kept = c.index_select(&at_kept, 0)?;
    let c_jj = of_kept.index_select(&at_kept, 1)?;
    let mean = diagonal(c)?.iter().sum::<f64>() / count as f64;
    // Where nothing ever comes, any ridge will do.
    let mean = if mean == 0.0 { 1.0 } else { mean };
    // Of few rows what is left after rounding can be negative.
    let factor = damped_factor(&c_jj, &diagonal(&c_jj)?, mean, (TO_SOLVE, ESCALATIONS))?;
    let problem = "the second moments of the input of its neurons are not positive definite, \
        however much they are damped";
    let (factor, damping) = factor.ok_or_else(|| Error::layer(layer, problem))?;
    // Rows x (C_JJ + lam I)^-1 = x U^T U.
    let (factor, transposed) = (Weight::from(factor.clone()), factor.t()?.contiguous()?.into());
    let solve =
        |x: &Tensor| ops::linear(&ops::linear(x, &factor, None, None)?, &transposed, None, None);
    let lost = without(weight, &kept)?;
    let owed = ops::linear(&lost, &of_kept.into(), None, None)?;
    let paid = solve(&owed)?;
    // What rounding in `f32` left of it.
    let back =
        (ops::linear(&paid, &c_jj.into(), None, None)? + paid.affine(damping * mean, 0.0)?)?;
    let paid = (&paid + solve(&(&owed - back)?)?)?;
    // Each column at its place, the others of zeros.
    let mut of_columns = vec![kept.len(); count];
    kept.iter().enumerate().for_each(|(index, &place)| of_columns[place] = index);
    let zeros = Tensor::zeros((rows, 1), DType::F32, device)?;
    let paid = Tensor::cat(&[&paid, &zeros], 1)?.index_select(&indices(&of_columns, device)?, 1)?;
    Ok((without(weight, gone)? + paid)?)
}

/// Returns [C (C + lam I)^-1]_ii = 1 - lam [(C + lam I)^-1]_ii for every i.
fn leverages(c: &Tensor, layer: &LayerName) -> Result<Vec<f64>> {
    let count = c.dim(0)?;
    let mean = diagonal(c)?.iter().sum::<f64>() / count.max(1) as f64;
    // H^-1 = U^T U.
    let factor = Factor::new(c, layer)?;
    let inverse = ops::column_squares(&factor.values)?;
    let ridge = factor.damping.max(TO_SCORE) * mean;
    let mut leverages: Vec<f64> =
        inverse.into_iter().map(|inverse| 1.0 - ridge * inverse).collect();
    // What nothing ever reaches is of no use.
    factor.dead.iter().for_each(|&i| leverages[i] = f64::NEG_INFINITY);
    Ok(leverages)
}

/// Second moments of the rows of each head, width x width.
struct Grams(Vec<Mat<f64>>);

impl Grams {
    fn zeros(count: usize, width: usize) -> Self {
        Self(vec![Mat::zeros(width, width); count])
    }

    fn add(&mut self, others: &Self) {
        self.0.iter_mut().zip(&others.0).for_each(|(own, other)| *own += other);
    }

    /// Returns those of x W^T + b for inputs x with the given statistics: W C W^T + m b^T + b m^T +
    /// n b b^T, where m is the sum of x W^T over all rows, and n the number of rows.
    fn projected(
        weight: &[f32],
        bias: Option<&[f32]>,
        statistics: &InputStatistics,
        (count, width): (usize, usize),
    ) -> Result<Self> {
        let columns = statistics.width();
        let hessian = &statistics.hessian;
        let rows = Tensor::from_slice(weight, (count * width, columns), &Device::Cpu)?;
        let rows = to_device(&rows, hessian.device())?;
        // C is its own transpose.
        let product = ops::linear(&rows, &hessian.clone().into(), None, None)?;
        let product = ops::with_values(&product, <[f32]>::to_vec)?;
        let gram = |head: usize| {
            let row = |values: &'_ [f32], i: usize| {
                values[(head * width + i) * columns..][..columns].to_vec()
            };
            let dot = |a: &[f32], b: &[f32]| {
                a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
            };
            let rows: Vec<_> = (0..width).map(|i| (row(&product, i), row(weight, i))).collect();
            let mut gram = Mat::from_fn(width, width, |i, j| dot(&rows[i].0, &rows[j].1));
            if let Some(bias) = bias {
                let b = |i: usize| f64::from(bias[head * width + i]);
                let m: Vec<f64> =
                    rows.iter().map(|(_, row)| dot(row, &statistics.weighted_sums)).collect();
                let n = statistics.weighted_rows;
                gram +=
                    Mat::from_fn(width, width, |i, j| m[i] * b(j) + b(i) * m[j] + n * b(i) * b(j));
            }
            symmetric(&gram)
        };
        Ok(Self((0..count).into_par_iter().map(gram).collect()))
    }

    /// Returns those of the columns of each head in an input, from `start` on, with `offset`
    /// subtracted from every row.
    fn of_input(
        statistics: &InputStatistics,
        start: usize,
        heads: &HeadGroup,
        offset: Option<&[f32]>,
    ) -> Result<Self> {
        let (width, columns) = (heads.value, statistics.width());
        let gram = |hessian: &[f32], head: usize| {
            let at = |i: usize| start + head * width + i;
            let m = |i: usize| f64::from(statistics.weighted_sums[at(i)]);
            let b = |i: usize| offset.map_or(0.0, |offset| f64::from(offset[head * width + i]));
            let n = statistics.weighted_rows;
            symmetric(&Mat::from_fn(width, width, |i, j| {
                f64::from(hessian[at(i) * columns + at(j)]) - m(i) * b(j) - b(i) * m(j)
                    + n * b(i) * b(j)
            }))
        };
        let grams = |hessian: &[f32]| (0..heads.count).map(|head| gram(hessian, head)).collect();
        Ok(Self(ops::with_values(&statistics.hessian, grams)?))
    }

    /// Returns those of the rows that a weight has in the columns of each head.
    fn of_columns(weight: &LayerWeight, start: usize, heads: &HeadGroup) -> Self {
        let width = heads.value;
        let gram = |head: usize| {
            let mut gram = Mat::<f64>::zeros(width, width);
            for row in weight.values.chunks_exact(weight.columns.max(1)) {
                let row = &row[start + head * width..][..width];
                for (j, &b) in row.iter().enumerate() {
                    for (i, &a) in row.iter().enumerate() {
                        gram[(i, j)] += f64::from(a) * f64::from(b);
                    }
                }
            }
            gram
        };
        Self((0..heads.count).into_par_iter().map(gram).collect())
    }
}

fn symmetric(matrix: &Mat<f64>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| 0.5 * (matrix[(i, j)] + matrix[(j, i)]))
}

/// Returns the bases of each head.
fn bases(module: &LayerName, of_left: &Grams, of_right: &Grams) -> Result<Vec<LowRank>> {
    let pairs = of_left.0.par_iter().zip(&of_right.0);
    let found: std::result::Result<_, _> = pairs.map(|(a, b)| LowRank::new(a, b)).collect();
    found.map_err(|error| Error::layer(module, error))
}

fn relative_tail(bases: &[LowRank], rank: usize) -> f64 {
    let sum = |rank: usize| bases.iter().map(|basis| basis.tail(rank)).sum::<f64>();
    let total = sum(0);
    if total > 0.0 { sum(rank) / total } else { 0.0 }
}
