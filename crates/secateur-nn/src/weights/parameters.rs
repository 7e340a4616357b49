//! The named tensors of one component, and the scopes that models take them from.

use crate::error::{Error, Result};
use crate::name::LayerName;
use crate::placement::Placement;
use crate::weights::weight::Weight;
use candle_core::{DType, Device, Shape, Tensor};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// No tensor has more.
const MOST_ELEMENTS: usize = 1 << 40;

/// The named tensors of one component of a pipeline, as its checkpoint names them.
///
/// Models share the tensors, and do not copy them: replacing one and building the model again is
/// cheap.
#[derive(Clone, Debug)]
pub struct Parameters {
    origin: String,
    weights: BTreeMap<String, Weight>,
    /// Number of equal parts (heads, neurons) of each module that differs from its configuration.
    sizes: BTreeMap<LayerName, usize>,
    placement: Placement,
}

impl Parameters {
    /// Wraps weights by name. Errors name `origin`, the folder or file that the tensors come from.
    pub fn new<W: Into<Weight>>(
        origin: impl Into<String>,
        weights: impl IntoIterator<Item = (String, W)>,
    ) -> Self {
        let weights = weights.into_iter().map(|(name, weight)| (name, weight.into())).collect();
        let (sizes, placement) = (BTreeMap::new(), Placement::cpu());
        Self { origin: origin.into(), weights, sizes, placement }
    }

    /// Says that the tensors are at `placement`. Models that are built from them make their own
    /// tensors there, too.
    #[must_use]
    pub fn at(self, placement: Placement) -> Self {
        Self { placement, ..self }
    }

    /// Sets the number of equal parts of the modules that differ from their configuration: see
    /// [`Scope::size`].
    #[must_use]
    pub fn with_sizes(self, sizes: BTreeMap<LayerName, usize>) -> Self {
        Self { sizes, ..self }
    }

    /// The parameter `name`, if there is one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Weight> {
        self.weights.get(name)
    }

    /// Replaces the parameter `name`, which must exist, by `weight`, copied to where the parameters
    /// are. A shape that does not fit is an error of the next [`Parameters::build`].
    ///
    /// # Errors
    /// If there is no such parameter, or no memory for the copy.
    pub fn replace(&mut self, name: &str, weight: impl Into<Weight>) -> Result<()> {
        match self.weights.get_mut(name) {
            Some(old) => *old = weight.into().brought(&self.placement)?,
            None => {
                return Err(Error::Layer {
                    layer: name.into(),
                    problem: "no such parameter".into(),
                });
            }
        }
        Ok(())
    }

    /// Renames and reshapes every parameter by `change`.
    ///
    /// # Errors
    /// If `change` fails.
    pub fn map(
        self,
        change: impl Fn(String, Tensor) -> candle_core::Result<(String, Tensor)>,
    ) -> Result<Self> {
        let changed = self.weights.into_iter().map(|(name, weight)| {
            let (name, tensor) = change(name, weight.tensor()?)?;
            Ok((name, tensor.into()))
        });
        Ok(Self { weights: changed.collect::<candle_core::Result<_>>()?, ..self })
    }

    /// All parameters in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Weight)> {
        self.weights.iter().map(|(name, weight)| (name.as_str(), weight))
    }

    /// Makes parameters of these shapes without values. They take no memory, and serve to check a
    /// file against a model before it is read.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    pub fn placeholders(
        origin: impl Into<String>,
        shapes: impl IntoIterator<Item = (String, Vec<usize>)>,
    ) -> Result<Self> {
        let tensors =
            shapes.into_iter().map(|(name, shape)| Ok((name, placeholder(&shape.into())?)));
        Ok(Self::new(origin, tensors.collect::<Result<BTreeMap<_, _>>>()?))
    }

    /// Runs `construct` on placeholders, and returns the parameters that it takes, by name. For
    /// `sizes` see [`Scope::size`].
    ///
    /// # Errors
    /// The error of `construct`.
    pub fn wanted<T, E>(
        sizes: BTreeMap<LayerName, usize>,
        construct: impl FnOnce(Scope<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<BTreeMap<String, Wanted>, E> {
        let (none, ledger) =
            (Self::new("", BTreeMap::<_, Tensor>::new()).with_sizes(sizes), RefCell::default());
        construct(Scope { parameters: &none, ledger: &ledger, prefix: String::new() })?;
        Ok(ledger.into_inner().wanted)
    }

    /// Builds a model. Parameters that are missing or of another shape are gathered into one error,
    /// which also names those that `construct` did not take. Parameters that were not taken are no
    /// error by themselves.
    ///
    /// # Errors
    /// [`Error::Parameters`], or the error of `construct`.
    pub fn build<T, E: From<Error>>(
        &self,
        construct: impl FnOnce(Scope<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        Ok(self.construct(construct)?.0)
    }

    /// Checks the parameters as [`Parameters::build`] does, and returns how they fit. The model is
    /// dropped.
    ///
    /// # Errors
    /// As [`Parameters::build`].
    pub fn fit<T, E: From<Error>>(
        &self,
        construct: impl FnOnce(Scope<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<Fit, E> {
        Ok(self.construct(construct)?.1)
    }

    fn construct<T, E: From<Error>>(
        &self,
        construct: impl FnOnce(Scope<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<(T, Fit), E> {
        let ledger = RefCell::new(Ledger::default());
        let built = construct(Scope { parameters: self, ledger: &ledger, prefix: String::new() })?;
        let Ledger { used, wanted, mut mismatch } = ledger.into_inner();
        mismatch.unexpected =
            self.weights.keys().filter(|name| !used.contains(*name)).cloned().collect();
        mismatch.check(&self.origin)?;
        Ok((built, Fit { wanted, unexpected: mismatch.unexpected }))
    }
}

/// How a model fits its parameters.
#[derive(Debug)]
pub struct Fit {
    /// The parameters that the model takes, by name.
    pub wanted: BTreeMap<String, Wanted>,
    /// Names of parameters that the model does not take.
    pub unexpected: Vec<String>,
}

/// How the tensors of a file differ from those of a model.
#[derive(Debug, Default)]
pub struct Mismatch {
    missing: Vec<String>,
    misshapen: Vec<String>,
    unexpected: Vec<String>,
}

impl Mismatch {
    /// Compares names and shapes. Those that are `ignored` are known not to be `wanted`.
    pub fn new<'a>(
        wanted: &BTreeMap<String, Vec<usize>>,
        found: impl IntoIterator<Item = (&'a String, &'a [usize])>,
        ignored: impl Fn(&str) -> bool,
    ) -> Self {
        let mut mismatch = Self::default();
        let mut missing: BTreeSet<&String> = wanted.keys().collect();
        for (name, shape) in found {
            missing.remove(name);
            match wanted.get(name) {
                Some(wanted) if wanted == shape => {}
                Some(wanted) => mismatch.misshapen(name, shape, wanted),
                None if ignored(name) => {}
                None => mismatch.unexpected.push(name.clone()),
            }
        }
        mismatch.missing = missing.into_iter().cloned().collect();
        mismatch
    }

    fn misshapen(&mut self, name: &str, found: &[usize], wanted: &[usize]) {
        self.misshapen.push(format!("{name}: {found:?} in the file, {wanted:?} wanted"));
    }

    /// The names of tensors that are neither wanted nor ignored.
    #[must_use]
    pub fn unexpected(&self) -> &[String] {
        &self.unexpected
    }

    /// Fails if a tensor is missing or of another shape. `origin` is the file or folder of the
    /// tensors.
    ///
    /// # Errors
    /// [`Error::Parameters`], which also names the unexpected tensors: one of them may be a missing
    /// one under another name.
    pub fn check(&self, origin: impl Into<String>) -> Result<()> {
        if self.missing.is_empty() && self.misshapen.is_empty() {
            return Ok(());
        }
        let kinds = [
            ("missing", &self.missing),
            ("of another shape", &self.misshapen),
            ("unexpected", &self.unexpected),
        ];
        let problems: Vec<String> = kinds
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(kind, names)| list(kind, names))
            .collect();
        Err(Error::Parameters { origin: origin.into(), problems: problems.join("; ") })
    }
}

/// Zeros that take no memory.
fn placeholder(shape: &Shape) -> Result<Tensor> {
    Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(shape)?)
}

fn list(kind: &str, names: &[String]) -> String {
    const SHOWN: usize = 10;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if names.len() > SHOWN { ", ..." } else { "" };
    format!("{} {kind} ({shown}{more})", names.len())
}

/// A parameter that a model takes from its checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// How it is taken.
    pub kind: Kind,
}

/// How a model takes a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As the weight of a linear layer or a convolution, whose numbers are read at each call.
    Weight,
    /// As numbers that the model keeps: a bias, the weight of a norm, a table.
    Tensor,
    /// The same, of a constant that is stored with the weights. Constants do not count as
    /// parameters.
    Constant,
}

#[derive(Default)]
struct Ledger {
    used: BTreeSet<String>,
    wanted: BTreeMap<String, Wanted>,
    mismatch: Mismatch,
}

/// A place in the tree of parameter names, from which layers take what they need.
#[derive(Clone)]
pub struct Scope<'a> {
    parameters: &'a Parameters,
    ledger: &'a RefCell<Ledger>,
    prefix: String,
}

impl Scope<'_> {
    /// The scope below `name`, which may hold dots.
    #[must_use]
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: self.path(&name.to_string()), ..self.clone() }
    }

    /// The name of this place in the tree: the name of the layer that is built here.
    #[must_use]
    pub fn layer_name(&self) -> LayerName {
        self.prefix.as_str().into()
    }

    /// Number of equal parts (heads, neurons) of the module that is built here: `whole`, as its
    /// configuration says, or fewer if some were removed.
    #[must_use]
    pub fn size(&self, whole: usize) -> usize {
        self.parameters.sizes.get(self.prefix.as_str()).copied().unwrap_or(whole)
    }

    /// Where the parameters are, and where the model computes.
    #[must_use]
    pub fn placement(&self) -> &Placement {
        &self.parameters.placement
    }

    /// Whether the checkpoint holds a parameter `name` here.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.parameters.weights.contains_key(&self.path(name))
    }

    /// Takes the parameter `name` of `shape`. One that is missing or of another shape is recorded
    /// and replaced by a placeholder, so that [`Parameters::build`] reports all problems at once.
    ///
    /// # Errors
    /// If the shape is larger than any tensor, or a placeholder cannot be made.
    pub fn get(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        Ok(self.take(name, shape.into(), Kind::Tensor)?.tensor()?)
    }

    /// As [`Scope::get`], for the weight of a linear layer or a convolution.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn weight(&self, name: &str, shape: impl Into<Shape>) -> Result<Weight> {
        self.take(name, shape.into(), Kind::Weight)
    }

    /// As [`Scope::get`], for a constant that is stored with the weights, such as a table of
    /// positions.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn constant(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        Ok(self.take(name, shape.into(), Kind::Constant)?.tensor()?)
    }

    fn take(&self, name: &str, shape: Shape, kind: Kind) -> Result<Weight> {
        let path = self.path(name);
        let elements =
            shape.dims().iter().try_fold(1usize, |product, &size| product.checked_mul(size.max(1)));
        if elements.is_none_or(|elements| elements > MOST_ELEMENTS) {
            let problems = format!(
                "{path} of {:?} would be larger than any model's: a size is wrong",
                shape.dims()
            );
            return Err(Error::Parameters { origin: self.parameters.origin.clone(), problems });
        }
        let mut ledger = self.ledger.borrow_mut();
        ledger.used.insert(path.clone());
        ledger.wanted.insert(path.clone(), Wanted { shape: shape.dims().to_vec(), kind });
        match self.parameters.weights.get(&path) {
            Some(weight) if *weight.shape() == shape => return Ok(weight.clone()),
            Some(weight) => ledger.mismatch.misshapen(&path, weight.shape().dims(), shape.dims()),
            None => ledger.mismatch.missing.push(path),
        }
        Ok(placeholder(&shape)?.into())
    }

    /// Accepts a parameter that the model does not take, such as a stored constant.
    pub fn ignore(&self, name: &str) {
        self.ledger.borrow_mut().used.insert(self.path(name));
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Parameters, Weight};
    use crate::error::Error;
    use crate::ops;
    use candle_core::{Device, Tensor};

    #[test]
    fn weights_that_did_not_change_stay_packed() {
        let numbers = |first: f32| Tensor::new(&[[first, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let names = ["same.weight", "changed.weight"];
        let mut parameters = Parameters::new("", names.map(|name| (name.to_owned(), numbers(1.0))));
        let built = |parameters: &Parameters| {
            parameters.build(|scope| {
                let weight = |name: &str| scope.at(name).weight("weight", (2, 2));
                Ok::<[Weight; 2], Error>([weight("same")?, weight("changed")?])
            })
        };
        let x = Tensor::new(&[[1f32, 0.0]], &Device::Cpu).unwrap();
        let first = |weight: &Weight| {
            ops::linear(&x, weight, None, None).unwrap().to_vec2::<f32>().unwrap()[0][0]
        };
        assert_eq!(built(&parameters).unwrap().each_ref().map(first), [1.0, 1.0]);
        let of_same = || parameters.get("same.weight").unwrap().tensor().unwrap();
        assert_ne!(
            of_same().id(),
            of_same().id(),
            "the numbers are in memory beside the packed ones"
        );
        assert_eq!(of_same().to_vec2::<f32>().unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
        parameters.replace("changed.weight", numbers(5.0)).unwrap();
        let again = built(&parameters).unwrap();
        let is_packed = |weight: &Weight| {
            weight.packed(|_| Err(candle_core::Error::Msg("not packed".into()))).is_ok()
        };
        assert_eq!(again.each_ref().map(is_packed), [true, false]);
        assert_eq!(again.each_ref().map(first), [1.0, 5.0]);
    }
}
