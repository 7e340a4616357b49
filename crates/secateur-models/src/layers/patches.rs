//! Transformers over patches of the latents: from latents to tokens and back, and what the
//! configurations of DiT and PixArt share.

use crate::error::{Result, refuse};
use crate::files::check_heads;
use crate::layers::feed_forward::Gate;
use crate::structure::{Rows, Site};
use candle_core::Tensor;
use secateur_nn::{Context, Conv2d, Placement, ops};
use serde::Deserialize;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

/// Rows and columns of the tokens that latents of `size` (height, width) become.
///
/// # Errors
/// If the size is not a multiple of `patch`.
pub(crate) fn whole_grid(size: (usize, usize), patch: usize) -> Result<(usize, usize)> {
    let (height, width) = size;
    if height % patch != 0 || width % patch != 0 {
        refuse!("latents of {height} x {width} do not divide into patches of {patch}");
    }
    Ok((height / patch, width / patch))
}

/// `PatchEmbed` without its positions: squares of the latents become tokens.
pub(crate) struct PatchEmbed {
    proj: Conv2d,
    patch: usize,
}

impl PatchEmbed {
    /// Maps squares of side `patch` to tokens. `channels` are those of the latents and of the
    /// tokens. Also returns the rows of the tokens.
    pub(crate) fn new(
        channels: (usize, usize),
        patch: usize,
        site: &Site<'_>,
    ) -> Result<(Self, Rows)> {
        let (proj, tokens) = site.at("proj").strided(channels, patch, patch, (0, 0))?;
        Ok((Self { proj, patch }, tokens))
    }

    /// Maps latents (samples x channels x height x width) to tokens (samples x tokens x channels).
    /// Also returns the rows and columns of the tokens.
    pub(crate) fn forward(
        &self,
        latents: &Tensor,
        context: &Context<'_>,
    ) -> Result<(Tensor, (usize, usize))> {
        let (_, _, height, width) = latents.dims4()?;
        let grid = whole_grid((height, width), self.patch)?;
        Ok((ops::tokens(&self.proj.forward(latents, context)?)?, grid))
    }

    /// Maps tokens (samples x tokens x (patch * patch * channels)) to latents (samples x channels x
    /// height x width).
    pub(crate) fn unpatchify(&self, x: &Tensor, (rows, columns): (usize, usize)) -> Result<Tensor> {
        let (samples, _, values) = x.dims3()?;
        let patch = self.patch;
        let channels = values / (patch * patch);
        let x = x
            .reshape((samples, rows, columns, patch, patch, channels))?
            .permute((0, 5, 1, 3, 2, 4))?;
        Ok(x.reshape((samples, channels, rows * patch, columns * patch))?)
    }
}

/// Tensors that are made once for each size, and kept.
#[derive(Default)]
pub(crate) struct BySize<S>(Mutex<HashMap<S, Tensor>>);

impl<S: Eq + Hash> BySize<S> {
    /// The tensor for `size`, which `make` makes where it is not there.
    pub(crate) fn of(&self, size: S, make: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensor) = made.get(&size) {
            return Ok(tensor.clone());
        }
        let tensor = make()?;
        made.insert(size, tensor.clone());
        Ok(tensor)
    }
}

/// `get_2d_sincos_pos_embed`: sines and cosines of the place of a token.
pub(crate) struct Positions {
    /// Tokens on a side at the size it was trained for: a larger grid is squeezed into as many
    /// places.
    pub(crate) base_size: usize,
    /// Divides all places.
    pub(crate) interpolation_scale: f64,
    /// Numbers a token, a multiple of 4.
    pub(crate) width: usize,
    /// For each grid.
    made: BySize<(usize, usize)>,
}

impl Positions {
    /// Of the tokens of a grid (rows, columns), 1 x tokens x width, at `placement`.
    pub(crate) fn of(&self, grid: (usize, usize), placement: &Placement) -> Result<Tensor> {
        self.made.of(grid, || self.table(grid, placement))
    }

    /// The first half of each token tells the column, the second the row.
    fn table(&self, (rows, columns): (usize, usize), placement: &Placement) -> Result<Tensor> {
        let half = self.width / 2;
        let across = self
            .along(columns, placement)?
            .reshape((1, columns, half))?
            .broadcast_as((rows, columns, half))?;
        let down = self
            .along(rows, placement)?
            .reshape((rows, 1, half))?
            .broadcast_as((rows, columns, half))?;
        Ok(Tensor::cat(&[across, down], 2)?.reshape((1, rows * columns, self.width))?)
    }

    /// `count` places along one side, half the width each. Places are of f32, their angles of f64,
    /// as in diffusers.
    fn along(&self, count: usize, placement: &Placement) -> Result<Tensor> {
        let quarter = self.width / 4;
        let frequencies: Vec<f64> =
            (0..quarter).map(|i| 1.0 / 10000f64.powf(i as f64 / quarter as f64)).collect();
        let step = (count as f64 / self.base_size as f64) as f32;
        let rows = (0..count).flat_map(|index| {
            let place = f64::from(index as f32 / step / self.interpolation_scale as f32);
            let angles = frequencies.iter().map(move |frequency| place * frequency);
            angles.clone().map(f64::sin).chain(angles.map(f64::cos)).map(|value| value as f32)
        });
        Ok(placement.tensor(rows.collect(), count * self.width / 2)?)
    }
}

/// Hidden neurons of a feed-forward, per number of a token; no configuration says otherwise.
const MLP_RATIO: usize = 4;

/// What the configurations of `DiTTransformer2DModel` and `PixArtTransformer2DModel` have in
/// common.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct PatchTransformer {
    pub(crate) num_attention_heads: usize,
    pub(crate) attention_head_dim: usize,
    pub(crate) in_channels: usize,
    pub(crate) out_channels: Option<usize>,
    pub(crate) num_layers: usize,
    pub(crate) attention_bias: bool,
    pub(crate) sample_size: usize,
    pub(crate) patch_size: usize,
    #[serde(rename = "activation_fn")]
    pub(crate) gate: Gate,
}

impl PatchTransformer {
    /// Checks that the configuration does not contradict itself.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        let sizes = [
            ("num_attention_heads", self.num_attention_heads),
            ("attention_head_dim", self.attention_head_dim),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels()),
            ("num_layers", self.num_layers),
            ("patch_size", self.patch_size),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(format!("{name} must not be 0"));
        }
        let heads = ("num_attention_heads", self.num_attention_heads);
        check_heads(heads, ("attention_head_dim", self.attention_head_dim))?;
        let (sample, patch, width) = (self.sample_size, self.patch_size, self.width());
        if sample < patch {
            return Err(format!("sample_size {sample} is less than patch_size {patch}"));
        }
        if !width.is_multiple_of(4) {
            return Err(format!(
                "heads x head size {width} is not a multiple of 4, which the positions need"
            ));
        }
        Ok(())
    }

    pub(crate) fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Hidden neurons of a feed-forward.
    pub(crate) fn ff_inner_dim(&self) -> usize {
        MLP_RATIO * self.width()
    }

    pub(crate) fn out_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Width of an output token.
    pub(crate) fn outputs(&self) -> usize {
        self.patch_size * self.patch_size * self.out_channels()
    }

    pub(crate) fn latent_shape(&self) -> [usize; 3] {
        [self.in_channels, self.sample_size, self.sample_size]
    }

    pub(crate) fn pos_embed(&self, site: &Site<'_>) -> Result<(PatchEmbed, Rows)> {
        PatchEmbed::new((self.in_channels, self.width()), self.patch_size, &site.at("pos_embed"))
    }

    pub(crate) fn positions(&self, interpolation_scale: f64) -> Positions {
        Positions {
            base_size: self.sample_size / self.patch_size,
            interpolation_scale,
            width: self.width(),
            made: BySize::default(),
        }
    }
}
