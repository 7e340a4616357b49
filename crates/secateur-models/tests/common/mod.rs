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
    let timesteps = given["timestep"].to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
    let x = given["x"].clone();
    move |scope| config.build(&scope)?.forward(&x, &timesteps, &conditioning, &context)
}
