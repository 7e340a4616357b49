//! From pictures to what CLIP's vision tower reads.

use crate::error::{Error, Result};
use crate::options::read_config;
use candle_core::{Device, Tensor};
use image::imageops::{self, FilterType};
use image::{ImageBuffer, Rgb};
use serde::Deserialize;
use std::path::Path;

/// A size as the newer configurations write it, or one number as the older ones do.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Edge { shortest_edge: u32 },
    Sides { height: u32, width: u32 },
    Number(u32),
}

impl Size {
    fn edge(self) -> u32 {
        match self {
            Self::Edge { shortest_edge: edge } | Self::Number(edge) => edge,
            Self::Sides { height, width } => height.min(width),
        }
    }

    fn sides(self) -> (u32, u32) {
        match self {
            Self::Edge { shortest_edge: side } | Self::Number(side) => (side, side),
            Self::Sides { height, width } => (height, width),
        }
    }
}

/// `CLIPImageProcessor`: resize the shortest edge (bicubic), crop the centre, normalise.
#[derive(Clone, Debug, Deserialize)]
pub struct ClipImageProcessor {
    size: Size,
    crop_size: Size,
    image_mean: [f32; 3],
    image_std: [f32; 3],
}

impl ClipImageProcessor {
    /// Reads `preprocessor_config.json`.
    ///
    /// # Errors
    /// If it cannot be read, or its numbers cannot be used.
    pub fn open(path: &Path) -> Result<Self> {
        let processor: Self = read_config(path)?;
        let (height, width) = processor.crop_size.sides();
        if processor.size.edge() == 0 || height == 0 || width == 0 {
            return Err(Error::invalid(path, "size and crop_size must not be 0"));
        }
        if processor.image_std.iter().any(|&std| std <= 0.0) {
            return Err(Error::invalid(path, "image_std must be positive numbers"));
        }
        Ok(processor)
    }

    /// Pictures in [0, 1], samples x height x width x 3, to samples x 3 x crop height x crop width.
    ///
    /// # Errors
    /// If the pictures are not of that shape.
    pub fn prepare(&self, pictures: &Tensor) -> Result<Tensor> {
        let (samples, height, width, channels) = pictures.dims4()?;
        if channels != 3 || height == 0 || width == 0 {
            return Err(Error::Request(format!("pictures of shape {:?} are not RGB", pictures.dims())));
        }
        let (crop_height, crop_width) = self.crop_size.sides();
        let (crop_height, crop_width) = (crop_height as usize, crop_width as usize);
        let mut pixels = Vec::with_capacity(samples * 3 * crop_height * crop_width);
        for sample in 0..samples {
            let data = pictures.get(sample)?.flatten_all()?.to_vec1::<f32>()?;
            // Pictures are scored as they are saved, in 8 bits.
            let data = data.into_iter().map(|x| (x.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect();
            let picture = ImageBuffer::<Rgb<u8>, Vec<u8>>::from_raw(width as u32, height as u32, data);
            let picture = picture.ok_or_else(|| Error::Request("picture of a wrong size".into()))?;
            let picture = self.resize(picture);
            for channel in 0..3 {
                let (mean, std) = (self.image_mean[channel], self.image_std[channel]);
                pixels.extend(picture.pixels().map(|p| (f32::from(p.0[channel]) / 255.0 - mean) / std));
            }
        }
        Ok(Tensor::from_vec(pixels, (samples, 3, crop_height, crop_width), &Device::Cpu)?)
    }

    fn resize(&self, picture: ImageBuffer<Rgb<u8>, Vec<u8>>) -> ImageBuffer<Rgb<u8>, Vec<u8>> {
        let (width, height) = picture.dimensions();
        let (short, edge) = (width.min(height), self.size.edge());
        let side = |n: u32| (u64::from(n) * u64::from(edge) / u64::from(short)) as u32;
        let (width, height) = (side(width), side(height));
        let picture =
            if short == edge { picture } else { imageops::resize(&picture, width, height, FilterType::CatmullRom) };
        let (crop_height, crop_width) = self.crop_size.sides();
        let (left, top) = (i64::from(width) - i64::from(crop_width), i64::from(height) - i64::from(crop_height));
        let mut canvas = ImageBuffer::new(crop_width, crop_height);
        imageops::replace(&mut canvas, &picture, -left / 2, -top / 2);
        canvas
    }
}
