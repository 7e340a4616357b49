//! What kernels make as nodes of candle's graph.

use crate::ops::graph::{self, Node};
use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, Result, Shape, Storage, Tensor, bail};
use std::sync::{Mutex, PoisonError};

/// What a kernel made.
pub(super) struct Output {
    pub(super) storage: CudaStorage,
    pub(super) shape: Shape,
}

impl Output {
    /// `y`, which is not tracked, as the result of `inputs`, as [`Output::tracked`].
    pub(super) fn of(
        y: Tensor,
        name: &'static str,
        inputs: &[&Tensor],
        backward: impl Fn(&Backward<'_>) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
    ) -> Result<Tensor> {
        if !inputs.iter().any(|input| input.track_op()) {
            return Ok(y);
        }
        let y = y.force_contiguous()?;
        let (storage, layout) = y.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("{name}: a tensor of the CPU") };
        let storage = storage.try_clone(layout)?;
        Self { storage, shape: y.shape().clone() }.tracked(name, inputs, backward)
    }

    /// A tensor outside of the graph.
    pub(super) fn untracked(self) -> Tensor {
        Tensor::from_storage(Storage::Cuda(self.storage), self.shape, BackpropOp::none(), false)
    }

    /// The result of `inputs`: one to three. `backward` is given them, the result, its gradient,
    /// and which inputs a gradient is wanted of; neither the result nor its gradient is empty.
    pub(super) fn tracked(
        self,
        name: &'static str,
        inputs: &[&Tensor],
        backward: impl Fn(&Backward<'_>) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
    ) -> Result<Tensor> {
        if !inputs.iter().any(|input| input.track_op()) {
            return Ok(self.untracked());
        }
        let node = Made { name, output: Mutex::new(Some(self)), backward };
        graph::apply(node, inputs)
    }
}

/// What a backward pass is given, none of it tracked.
pub(super) struct Backward<'a> {
    pub(super) inputs: &'a [Tensor],
    pub(super) output: &'a Tensor,
    pub(super) gradient: &'a Tensor,
    pub(super) wanted: &'a [bool],
}

impl Backward<'_> {
    /// The gradient of input `index`, where it is wanted.
    pub(super) fn of(
        &self,
        index: usize,
        gradient: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Option<Tensor>> {
        self.wanted.get(index).copied().unwrap_or(false).then(gradient).transpose()
    }
}

/// Zeros of the type and shape of `x`, outside of the graph; candle makes no empty tensor there.
pub(super) fn zeros_like(x: &Tensor) -> Result<Tensor> {
    if x.elem_count() == 0 { Ok(x.detach()) } else { x.zeros_like() }
}

struct Made<B> {
    name: &'static str,
    /// What was made, until it is put into the graph.
    output: Mutex<Option<Output>>,
    backward: B,
}

impl<B: Fn(&Backward<'_>) -> Result<Vec<Option<Tensor>>>> Node for Made<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn on_gpu(&self) -> Result<(CudaStorage, Shape)> {
        match self.output.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Output { storage, shape }) => Ok((storage, shape)),
            None => bail!("{}: a node is put into the graph once", self.name),
        }
    }

    fn backward<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        output: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; N]> {
        let wanted = inputs.map(Tensor::track_op);
        let detached = inputs.map(Tensor::detach);
        if output.elem_count() == 0 {
            let mut zeros = [const { None }; N];
            for (zero, (input, wanted)) in zeros.iter_mut().zip(inputs.into_iter().zip(wanted)) {
                if wanted {
                    *zero = Some(zeros_like(input)?);
                }
            }
            return Ok(zeros);
        }
        let gradients = (self.backward)(&Backward {
            inputs: &detached,
            output: &output.detach(),
            gradient: &gradient.detach().contiguous()?,
            wanted: &wanted,
        })?;
        let mut gradients = gradients.into_iter();
        Ok(std::array::from_fn(|_| gradients.next().flatten()))
    }
}
