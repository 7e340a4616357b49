//! What the tests of the families share.

use candle_core::{DType, Tensor};
use secateur_models::{Conditioning, Error, denoiser_config};
use secateur_nn::{Context, Scope};
use std::collections::HashMap;
use std::path::Path;

/// A call of the denoiser of a fixture's folder, with the inputs that the fixture names.
pub(crate) fn call<'a>(
    folder: &Path,
    given: &HashMap<String, Tensor>,
    multiplicity: Option<&Tensor>,
    context: Context<'a>,
) -> impl Fn(Scope<'_>) -> Result<Tensor, Error> + use<'a> {
    let config = denoiser_config(&folder.join("config.json")).unwrap();
    let conditioning = Conditioning {
        text: given.get("context").cloned(),
        pooled: given.get("pooled").or(given.get("text_embeds")).cloned(),
        time_ids: given.get("time_ids").cloned(),
        multiplicity: multiplicity.or(given.get("mask")).cloned(),
        labels: given.get("labels").cloned(),
        guidance: given.get("guidance").cloned(),
        resolution: given.get("resolution").cloned(),
    };
    let x = given["x"].clone();
    // diffusers' FLUX takes tokens of 2 x 2 latents with their places, and timesteps from 0 to 1.
    let size = given.get("img_ids").map(|places| {
        let last = places.max(0).unwrap().to_vec1::<f32>().unwrap();
        (last[1] as usize + 1, last[2] as usize + 1)
    });
    let scale = if size.is_some() { 1000.0 } else { 1.0 };
    let timesteps = (given["timestep"].to_dtype(DType::F32).unwrap() * scale).unwrap();
    move |scope| {
        let placement = scope.placement().clone();
        let conditioning = conditioning.at(&placement)?;
        let timesteps = placement.in_f32().bring(&timesteps)?;
        let x = placement.bring(&x)?;
        let model = config.build(&scope.into())?;
        let forward = |x: &Tensor| model.forward(x, &timesteps, &conditioning, &context);
        match size {
            Some(size) => packed(&forward(&unpacked(&x, size)?)?),
            None => forward(&x),
        }
    }
}

/// `FluxPipeline._pack_latents`.
fn packed(x: &Tensor) -> Result<Tensor, Error> {
    let (samples, channels, height, width) = x.dims4()?;
    let x =
        x.reshape((samples, channels, height / 2, 2, width / 2, 2))?.permute((0, 2, 4, 1, 3, 5))?;
    Ok(x.reshape((samples, height * width / 4, channels * 4))?)
}

/// `FluxPipeline._unpack_latents`.
fn unpacked(x: &Tensor, (rows, columns): (usize, usize)) -> Result<Tensor, Error> {
    let (samples, _, channels) = x.dims3()?;
    let x = x.reshape((samples, rows, columns, channels / 4, 2, 2))?.permute((0, 3, 1, 4, 2, 5))?;
    Ok(x.reshape((samples, channels / 4, rows * 2, columns * 2))?)
}
