//! y = x W^T + b, and its gradients.

use crate::activation::{Activation, activate};
use crate::product::{Panels, Start, Strips, product};
use std::ops::Range;
use std::sync::OnceLock;

/// A weight W (outputs x inputs) as products read it.
#[derive(Debug)]
pub struct LinearWeight {
    /// W^T.
    forward: Panels,
    /// W, for the gradient of the input, made when first needed.
    backward: OnceLock<Panels>,
}

impl LinearWeight {
    /// Of row-major rows of `inputs`.
    #[must_use]
    pub fn new(weight: &[f32], inputs: usize) -> Self {
        Self { forward: Panels::transposed(weight, inputs), backward: OnceLock::new() }
    }

    /// The factor W^T.
    #[must_use]
    pub fn forward(&self) -> &Panels {
        &self.forward
    }

    /// Inputs and outputs.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.forward.depth(), self.forward.columns())
    }

    /// The elements of W, row-major.
    #[must_use]
    pub fn elements(&self) -> Vec<f32> {
        self.forward.to_columns()
    }

    /// The factor W.
    fn backward(&self) -> &Panels {
        let (inputs, outputs) = self.size();
        self.backward.get_or_init(|| {
            let weight = self.elements();
            Panels::from_rows(outputs, inputs, |row| &weight[row * inputs..][..inputs])
        })
    }
}

/// y = x W^T + bias, then `activation`: `x` rows x inputs, row-major, `weight` the factor W^T
/// (inputs x outputs), `y` rows x outputs.
pub fn linear(
    x: &[f32],
    weight: &Panels,
    bias: Option<&[f32]>,
    activation: Option<Activation>,
    y: &mut [f32],
) {
    if y.is_empty() {
        return;
    }
    let start = bias.map_or(Start::Zero, Start::Bias);
    let output = y.chunks_exact_mut(weight.columns()).collect();
    product(rows_of(x, weight.depth()), weight, start, output, |y| {
        if let Some(activation) = activation {
            activate(activation, y);
        }
    });
}

/// Packs rows of a row-major matrix with rows of `depth`.
pub(crate) fn rows_of(matrix: &[f32], depth: usize) -> impl Fn(Range<usize>, &mut Strips) + Sync {
    move |rows, left| {
        left.set_rows(rows.len(), depth, |i| &matrix[(rows.start + i) * depth..][..depth])
    }
}

/// Adds the gradient of W to `gradient` (outputs x inputs): gy^T x, with `x` rows x inputs and `gy`
/// rows x outputs.
pub fn weight_gradient(
    x: &[f32],
    gy: &[f32],
    (inputs, outputs): (usize, usize),
    gradient: &mut [f32],
) {
    if gradient.is_empty() || x.is_empty() {
        return;
    }
    let right = Panels::from_rows(x.len() / inputs, inputs, |row| &x[row * inputs..][..inputs]);
    let pack = |rows: Range<usize>, left: &mut Strips| {
        left.set_columns(rows.len(), right.depth(), |p| &gy[p * outputs + rows.start..], |_| 1.0);
    };
    product(pack, &right, Start::Output, gradient.chunks_exact_mut(inputs).collect(), |_| ());
}

/// The gradient of x (rows x inputs): gy W, with `gy` rows x outputs.
pub fn input_gradient(gy: &[f32], weight: &LinearWeight, gradient: &mut [f32]) {
    let (inputs, outputs) = weight.size();
    if gradient.is_empty() || outputs == 0 {
        return;
    }
    product(
        rows_of(gy, outputs),
        weight.backward(),
        Start::Zero,
        gradient.chunks_exact_mut(inputs).collect(),
        |_| (),
    );
}
