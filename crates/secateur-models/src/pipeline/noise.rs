//! The noise that images start from.

use crate::error::Result;
use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use std::ops::Range;

/// Standard normal noise in f32 for the images `images` of a run: images x `shape`. Draw 0 is the
/// initial noise, and later draws are those that a sampler adds. An image's noise depends only on
/// the seed, its own number and the draw, and not on the batch.
///
/// # Errors
/// If the tensor cannot be made.
pub fn noise(seed: u64, images: Range<usize>, draw: usize, shape: &[usize]) -> Result<Tensor> {
    let size: usize = shape.iter().product();
    let mut values = Vec::with_capacity(images.len() * size);
    for image in images.clone() {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(image as u64);
        // Further apart than any picture has numbers.
        random.set_word_pos((draw as u128) << 40);
        values.extend((0..size).map(|_| -> f32 { StandardNormal.sample(&mut random) }));
    }
    let shape: Vec<usize> = std::iter::once(images.len()).chain(shape.iter().copied()).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::noise;

    #[test]
    fn an_image_has_the_same_noise_in_any_batch() {
        let all = noise(7, 0..4, 0, &[3, 5]).unwrap().to_vec3::<f32>().unwrap();
        let some = noise(7, 2..4, 0, &[3, 5]).unwrap().to_vec3::<f32>().unwrap();
        assert_eq!(all[2..], some[..]);
        assert_ne!(all[0], all[1]);
        assert_ne!(all, noise(7, 0..4, 1, &[3, 5]).unwrap().to_vec3::<f32>().unwrap());
        assert_ne!(all, noise(8, 0..4, 0, &[3, 5]).unwrap().to_vec3::<f32>().unwrap());
    }
}
