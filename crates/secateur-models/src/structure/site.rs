//! Sites: the places where a model is built, and where its constructors record its structure.

use crate::error::{Error, Result};
use crate::structure::block::{Block, Layer, Operation, Prunable, Role};
use crate::structure::group::{HeadGroup, NeuronGroup};
use crate::structure::unit::Unit;
use secateur_nn::{Conv2d, LayerName, Linear, Parameters, Scope};
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::rc::Rc;

/// What the rows of a layer's input are, or the output pixels of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// A number that no geometry changes, such as one row for the time.
    Fixed(usize),
    /// The text tokens.
    Text,
    /// The pixels of a picture by its number, such as 0 for the latents.
    Pixels(usize),
    /// The pixels of a picture by its number, and the text tokens.
    Joint(usize),
}

/// A picture that is made from another one, by enlarging it and by a convolution.
#[derive(Clone, Copy, Debug)]
struct Picture {
    of: usize,
    factor: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
}

/// All that the constructors of a model recorded. With a geometry it becomes a
/// [`Structure`](crate::Structure).
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// The blocks, without their layers.
    pub(super) blocks: Vec<Block>,
    /// Each layer with the index of its block, its rows, and the rows of its keys. The operations
    /// have no sizes yet.
    pub(super) layers: Vec<(usize, Layer, [Rows; 2])>,
    pub(super) units: Vec<Unit>,
    pub(super) branches: Vec<Unit>,
    pub(super) residual: bool,
    /// Activations of one sample that are alive at once: one list for each place in the model.
    pub(super) alive: Vec<Vec<(Rows, usize)>>,
    /// All pictures but the latents.
    pictures: Vec<Picture>,
}

impl Description {
    /// Records the model that `build` builds. `sizes` are those of the modules that differ from
    /// their configuration, see [`Scope::size`].
    pub(crate) fn of<T>(
        sizes: BTreeMap<LayerName, usize>,
        build: impl FnOnce(&Site<'_>) -> Result<T>,
    ) -> Result<Self> {
        let mut description = Self::default();
        Parameters::wanted(sizes, |scope| {
            let site = Site::from(scope);
            build(&site)?;
            description = site.description();
            Ok::<_, Error>(())
        })?;
        Ok(description)
    }

    /// Heights and widths of all pictures, for latents of `size`.
    pub(super) fn pictures(&self, size: (usize, usize)) -> Vec<(usize, usize)> {
        let mut sizes = vec![size];
        for picture in &self.pictures {
            let side = |side: usize| {
                let side = side.saturating_mul(picture.factor).saturating_add(picture.padding);
                side.saturating_sub(picture.kernel) / picture.stride + 1
            };
            let (height, width) = sizes[picture.of];
            sizes.push((side(height), side(width)));
        }
        sizes
    }
}

/// The first of the layers that read one input.
type First = Rc<OnceCell<LayerName>>;

/// A place where a part of a model is built: a scope, and a record of the layers that are built
/// there.
#[derive(Clone)]
pub struct Site<'a> {
    scope: Scope<'a>,
    description: Rc<RefCell<Description>>,
    /// Index of the block that its layers belong to.
    block: usize,
    rows: Rows,
    prunable: Option<(Role, First)>,
    /// The first layer that reads the text, in any block.
    first_of_text: First,
    /// Activations that are alive beside those of any layer here.
    beside: Vec<(Rows, usize)>,
}

/// The root of a model. Layers built there belong to the embedders.
impl<'a> From<Scope<'a>> for Site<'a> {
    fn from(scope: Scope<'a>) -> Self {
        let embedders = Block { name: "embedders".into(), ..Block::default() };
        let description = Description { blocks: vec![embedders], ..Description::default() };
        Self {
            scope,
            description: Rc::new(RefCell::new(description)),
            block: 0,
            rows: Rows::Fixed(1),
            prunable: None,
            first_of_text: First::default(),
            beside: Vec::new(),
        }
    }
}

impl<'a> Deref for Site<'a> {
    type Target = Scope<'a>;

    fn deref(&self) -> &Scope<'a> {
        &self.scope
    }
}

impl Site<'_> {
    /// All that was recorded, here and anywhere else in the model.
    pub(crate) fn description(&self) -> Description {
        self.description.borrow().clone()
    }

    /// The site below `name`, which may hold dots.
    pub(crate) fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { scope: self.scope.at(name), ..self.clone() }
    }

    /// This site, for layers of `rows`.
    pub(crate) fn over(&self, rows: Rows) -> Self {
        Self { rows, ..self.clone() }
    }

    /// This site, for layers of one row, such as those of the time.
    pub(crate) fn once(&self) -> Self {
        self.over(Rows::Fixed(1))
    }

    /// This site, for layers of the rows here and of the text tokens.
    pub(crate) fn with_text(&self) -> Self {
        match self.rows {
            Rows::Pixels(picture) => self.over(Rows::Joint(picture)),
            _ => self.clone(),
        }
    }

    /// The rows of the layers here.
    pub(crate) fn rows(&self) -> Rows {
        self.rows
    }

    /// This site, where `numbers` are alive beside the activations of any layer.
    pub(crate) fn beside(&self, numbers: impl IntoIterator<Item = (Rows, usize)>) -> Self {
        let mut site = self.clone();
        site.beside.extend(numbers);
        site
    }

    /// This site, for linears that read one input and may be pruned.
    pub(crate) fn prunable(&self, role: Role) -> Self {
        Self { prunable: Some((role, First::default())), ..self.clone() }
    }

    /// This site, for prunable projections of keys and values of the text.
    pub(crate) fn of_text(&self) -> Self {
        let prunable = Some((Role::QueryKeyValue, Rc::clone(&self.first_of_text)));
        Self { prunable, ..self.over(Rows::Text) }
    }

    /// Builds and records the linear of this place.
    pub(crate) fn linear(&self, inputs: usize, outputs: usize) -> Result<Linear> {
        self.layer(Operation::Linear { rows: 0, inputs, outputs }, self.rows);
        Ok(Linear::new(inputs, outputs, &self.scope)?)
    }

    /// As [`Site::linear`], without a bias.
    pub(crate) fn linear_without_bias(&self, inputs: usize, outputs: usize) -> Result<Linear> {
        self.layer(Operation::Linear { rows: 0, inputs, outputs }, self.rows);
        Ok(Linear::without_bias(inputs, outputs, &self.scope)?)
    }

    /// Builds and records the convolution of this place, which keeps the picture's size. `channels`
    /// are those of the input and of the output.
    pub(crate) fn convolution(&self, channels: (usize, usize), kernel: usize) -> Result<Conv2d> {
        self.convolution_layer(channels, kernel);
        Ok(Conv2d::new(channels, kernel, 1, (kernel / 2, kernel / 2), &self.scope)?)
    }

    /// As [`Site::convolution`], without a bias.
    pub(crate) fn convolution_without_bias(
        &self,
        channels: (usize, usize),
        kernel: usize,
    ) -> Result<Conv2d> {
        self.convolution_layer(channels, kernel);
        Ok(Conv2d::without_bias(channels, kernel, 1, (kernel / 2, kernel / 2), &self.scope)?)
    }

    /// Builds and records the convolution of this place, which makes a smaller picture, and returns
    /// the rows of that. `padding` is the number of zeros before and after.
    pub(crate) fn strided(
        &self,
        channels: (usize, usize),
        kernel: usize,
        stride: usize,
        padding: (usize, usize),
    ) -> Result<(Conv2d, Rows)> {
        let rows = self.smaller(kernel, stride, padding.0 + padding.1);
        self.over(rows).convolution_layer(channels, kernel);
        Ok((Conv2d::new(channels, kernel, stride, padding, &self.scope)?, rows))
    }

    fn convolution_layer(&self, (inputs, outputs): (usize, usize), kernel: usize) {
        self.layer(Operation::Convolution { pixels: 0, inputs, outputs, kernel }, self.rows);
    }

    /// The pixels that a convolution makes from the picture here, or from the latents if there is
    /// none.
    pub(crate) fn smaller(&self, kernel: usize, stride: usize, padding: usize) -> Rows {
        self.picture(1, kernel, stride, padding)
    }

    /// This site, for layers of a picture `factor` times as high and wide.
    pub(crate) fn larger(&self, factor: usize) -> Self {
        self.over(self.picture(factor, 1, 1, 0))
    }

    fn picture(&self, factor: usize, kernel: usize, stride: usize, padding: usize) -> Rows {
        let of = match self.rows {
            Rows::Pixels(picture) | Rows::Joint(picture) => picture,
            Rows::Fixed(_) | Rows::Text => 0,
        };
        let pictures = &mut self.description.borrow_mut().pictures;
        pictures.push(Picture { of, factor, kernel, stride, padding });
        Rows::Pixels(pictures.len())
    }

    fn layer(&self, operation: Operation, keys: Rows) {
        let name = self.layer_name();
        let prunable = self.prunable.as_ref().map(|(role, first)| {
            let input = first.get_or_init(|| name.clone()).clone();
            Prunable { role: *role, input }
        });
        let layer = Layer { name, operation, prunable };
        self.description.borrow_mut().layers.push((self.block, layer, [self.rows, keys]));
    }

    /// Records the heads of the attention of this place, and its products with `keys`.
    pub(crate) fn heads(&self, heads: HeadGroup, keys: Rows) {
        let (query_key, value) = (heads.count * heads.query_key, heads.count * heads.value);
        self.layer(Operation::Attention { queries: 0, keys: 0, query_key, value }, keys);
        self.description.borrow_mut().blocks[self.block].heads.push(heads);
    }

    /// Records the neurons of a feed-forward.
    pub(crate) fn neurons(&self, neurons: NeuronGroup) {
        self.description.borrow_mut().blocks[self.block].neurons.push(neurons);
    }

    /// Records that `numbers` of activations are alive at once here.
    pub(crate) fn alive(&self, numbers: impl IntoIterator<Item = (Rows, usize)>) {
        let all = self.beside.iter().copied().chain(numbers).collect();
        self.description.borrow_mut().alive.push(all);
    }

    /// Begins a block, and returns its site. The block reads the one before it, and those of
    /// `also`.
    pub(crate) fn block(&self, also: &[usize]) -> Self {
        self.begin(self.layer_name().as_str(), also)
    }

    /// Begins the block of the layers after all others, and returns its site.
    pub(crate) fn output(&self) -> Self {
        self.begin("output", &[])
    }

    fn begin(&self, name: &str, also: &[usize]) -> Self {
        let blocks = &mut self.description.borrow_mut().blocks;
        let block = blocks.len();
        let reads = std::iter::once(block - 1).chain(also.iter().copied()).collect();
        blocks.push(Block { name: name.into(), reads, ..Block::default() });
        Self { block, ..self.clone() }
    }

    /// Index of the last block that was begun.
    pub(crate) fn last_block(&self) -> usize {
        self.description.borrow().blocks.len() - 1
    }

    /// Records that the outputs of each unit have the shapes of its inputs.
    pub(crate) fn residual(&self) {
        self.description.borrow_mut().residual = true;
    }

    /// Builds a unit at this place: all blocks that `build` begins.
    pub(crate) fn unit<T>(&self, build: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let (built, unit) = self.blocks_of(build)?;
        self.description.borrow_mut().units.push(unit);
        Ok(built)
    }

    /// As [`Site::unit`], for a finer unit.
    pub(crate) fn branch<T>(&self, build: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let (built, branch) = self.blocks_of(build)?;
        self.description.borrow_mut().branches.push(branch);
        Ok(built)
    }

    fn blocks_of<T>(&self, build: impl FnOnce(&Self) -> Result<T>) -> Result<(T, Unit)> {
        let start = self.last_block() + 1;
        let built = build(self)?;
        let name = self.layer_name().as_str().to_owned();
        Ok((built, Unit { name, blocks: start..self.last_block() + 1 }))
    }
}
