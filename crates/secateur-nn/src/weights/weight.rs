//! One parameter of a model.

use crate::error::Result;
use crate::placement::Placement;
use crate::weights::stream::{Stored, Stream};
use candle_core::{Device, Shape, Tensor};
use secateur_kernels::{ConvolutionWeight, LinearWeight};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A parameter: its numbers, or once a product has read it the packed form in which products read
/// them. The numbers are then made of the packed form when they are needed, so that a weight is in
/// memory once. One that is stored is not in memory: it is read each time. Clones share a weight: a
/// model that is built again from the same weights packs none of them twice.
#[derive(Clone, Debug)]
pub struct Weight(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    shape: Shape,
    held: Mutex<Held>,
    /// Where it is read, if it is not held.
    stored: Option<Arc<Stored>>,
}

/// One of them at least, but for a weight that is stored. Both if gradients go back to the numbers.
#[derive(Debug)]
struct Held {
    numbers: Option<Tensor>,
    packed: Option<Packed>,
}

/// The packed form of a weight.
#[derive(Clone, Debug)]
pub(crate) enum Packed {
    Linear(Arc<LinearWeight>),
    Convolution(Arc<ConvolutionWeight>),
    /// Outputs x kernel x kernel x channels.
    #[cfg(feature = "cudnn")]
    ChannelsLast(Tensor),
}

impl Packed {
    fn numbers(&self, shape: &Shape) -> candle_core::Result<Tensor> {
        match self {
            Self::Linear(weight) => Tensor::from_vec(weight.elements(), shape, &Device::Cpu),
            Self::Convolution(weight) => Tensor::from_vec(weight.elements(), shape, &Device::Cpu),
            #[cfg(feature = "cudnn")]
            Self::ChannelsLast(weight) => weight.permute((0, 3, 1, 2)),
        }
    }
}

impl Weight {
    /// A weight of `shape` that is not held in memory: `read` gives its numbers each time that they
    /// are needed. `stream` calls it ahead of that.
    #[must_use]
    pub fn stored(
        shape: impl Into<Shape>,
        stream: &Stream,
        read: impl Fn() -> candle_core::Result<Tensor> + Send + Sync + 'static,
    ) -> Self {
        let held = Held { numbers: None, packed: None };
        let stored = Some(stream.add(read));
        Self(Arc::new(Shared { shape: shape.into(), held: Mutex::new(held), stored }))
    }

    /// Whether it is not held in memory.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.0.stored.is_some()
    }

    /// The shape of the parameter.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.0.shape
    }

    /// The numbers of the parameter. Those of a packed one are a copy.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn tensor(&self) -> candle_core::Result<Tensor> {
        let packed = match &*self.held() {
            Held { numbers: Some(numbers), .. } => return Ok(numbers.clone()),
            Held { packed, .. } => packed.clone(),
        };
        match (packed, &self.0.stored) {
            (Some(packed), _) => packed.numbers(&self.0.shape),
            (None, Some(stored)) => stored.read(),
            (None, None) => candle_core::bail!("a weight of {:?} without numbers", self.0.shape),
        }
    }

    /// The numbers, if gradients go back to them.
    pub(crate) fn tracked(&self) -> Option<Tensor> {
        self.held().numbers.clone().filter(Tensor::track_op)
    }

    /// The packed form, which `pack` makes on first use, or of a stored weight each time. It takes
    /// as much memory as the numbers, which are let go, and twice as much once a gradient has gone
    /// back through it.
    pub(crate) fn packed(
        &self,
        pack: impl FnOnce(&Tensor) -> candle_core::Result<Packed>,
    ) -> candle_core::Result<Packed> {
        if let Some(packed) = &self.held().packed {
            return Ok(packed.clone());
        }
        // Not with the lock, under which other work of this thread could come back here.
        let numbers = self.tensor()?;
        let packed = pack(&numbers)?;
        if self.is_stored() {
            return Ok(packed);
        }
        let mut held = self.held();
        if !numbers.track_op() {
            held.numbers = None;
        }
        Ok(held.packed.get_or_insert(packed).clone())
    }

    /// The weight at `placement`: the same if it is there.
    pub(crate) fn brought(&self, placement: &Placement) -> Result<Self> {
        if self.held().numbers.is_none() && placement.is_exact() {
            return Ok(self.clone());
        }
        if let Some(stored) = &self.0.stored {
            let (own, placement) = (Arc::clone(stored), placement.clone());
            let read = move || placement.bring(&own.now()?).map_err(candle_core::Error::wrap);
            return Ok(Self::stored(self.shape().clone(), stored.stream(), read));
        }
        let numbers = self.tensor()?;
        let brought = placement.bring(&numbers)?;
        Ok(if brought.id() == numbers.id() { self.clone() } else { brought.into() })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        let (shape, numbers) = (tensor.shape().clone(), Some(tensor));
        let held = Mutex::new(Held { numbers, packed: None });
        Self(Arc::new(Shared { shape, held, stored: None }))
    }
}
