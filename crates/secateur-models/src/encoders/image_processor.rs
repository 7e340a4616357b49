//! The preparation of pictures for CLIP's vision tower.

use crate::error::{Error, Result, invalid, refuse};
use crate::files::options::names;
use crate::files::read_config;
use candle_core::{Device, Tensor};
use image::imageops::{self, FilterType};
use image::{ImageBuffer, Rgb};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;

/// A size as the newer configurations write it, or one number as the older ones do.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "Value")]
struct Size {
    height: u32,
    width: u32,
}

/// A side of a square.
fn square(side: u32) -> Size {
    Size { height: side, width: side }
}

/// The side of what most CLIPs read.
const SIDE: u32 = 224;

impl Default for Size {
    fn default() -> Self {
        square(SIDE)
    }
}

impl TryFrom<Value> for Size {
    type Error = String;

    fn try_from(value: Value) -> std::result::Result<Self, String> {
        let number = |value: Option<&Value>| {
            value.and_then(Value::as_u64).and_then(|side| u32::try_from(side).ok())
        };
        let side = |name: &str| number(value.get(name));
        match (
            number(Some(&value)).or_else(|| side("shortest_edge")),
            side("height"),
            side("width"),
        ) {
            (Some(side), ..) => Ok(square(side)),
            (None, Some(height), Some(width)) => Ok(Self { height, width }),
            _ => {
                Err(format!("{value} is neither a number, nor shortest_edge, nor height and width"))
            }
        }
    }
}

/// `CLIPImageProcessor`: resize the shortest edge (bicubic), crop the centre, normalise.
#[derive(Clone, Debug, Deserialize)]
pub struct ClipImageProcessor {
    size: Option<Size>,
    crop_size: Option<Size>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
}

/// The default mean and standard deviation of colours.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Options with a single supported value, which is also their default.
fn supported() -> [(&'static str, Value); 6] {
    [
        ("do_resize", json!(true)),
        ("do_center_crop", json!(true)),
        ("do_rescale", json!(true)),
        ("do_normalize", json!(true)),
        // Bicubic.
        ("resample", json!(3)),
        ("rescale_factor", json!(1.0 / 255.0)),
    ]
}

/// Options that change nothing here: what wrote the file, and how other processors give their
/// results.
const UNREAD: [&str; 10] = names! {
    data_format default_to_square device do_convert_rgb feature_extractor_type image_processor_type
    input_data_format processor_class return_tensors image_seq_length
};

impl ClipImageProcessor {
    /// Reads `preprocessor_config.json`.
    ///
    /// # Errors
    /// If it cannot be read, or its numbers cannot be used.
    pub fn open(path: &Path) -> Result<Self> {
        let processor: Self = read_config(path, &supported(), &UNREAD)?;
        let Size { height, width } = processor.crop();
        if processor.edge() == 0 || height == 0 || width == 0 {
            invalid!(path, "size and crop_size must not be 0");
        }
        if processor.image_std.is_some_and(|std| std.iter().any(|&std| std <= 0.0)) {
            invalid!(path, "image_std must be positive numbers");
        }
        Ok(processor)
    }

    /// The length of the shortest edge after resizing.
    fn edge(&self) -> u32 {
        let Size { height, width } = self.size.unwrap_or_default();
        height.min(width)
    }

    fn crop(&self) -> Size {
        self.crop_size.unwrap_or_default()
    }

    /// Prepares pictures in [0, 1] (samples x height x width x 3): samples x 3 x crop height x crop
    /// width.
    ///
    /// # Errors
    /// If the pictures are not of that shape.
    pub fn prepare(&self, pictures: &Tensor) -> Result<Tensor> {
        let (samples, height, width, channels) = pictures.dims4()?;
        if channels != 3 || height == 0 || width == 0 {
            refuse!("pictures of shape {:?} are not RGB", pictures.dims());
        }
        let Size { height: crop_height, width: crop_width } = self.crop();
        let (crop_height, crop_width) = (crop_height as usize, crop_width as usize);
        let (means, stds) = (self.image_mean.unwrap_or(MEAN), self.image_std.unwrap_or(STD));
        let mut pixels = Vec::with_capacity(samples * 3 * crop_height * crop_width);
        for sample in 0..samples {
            let data = pictures.get(sample)?.flatten_all()?.to_vec1::<f32>()?;
            // Pictures are scored as they are saved, in 8 bits.
            let data = data
                .into_iter()
                .map(|x| (x.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8)
                .collect();
            let picture =
                ImageBuffer::<Rgb<u8>, Vec<u8>>::from_raw(width as u32, height as u32, data);
            let picture =
                picture.ok_or_else(|| Error::Request("picture of a wrong size".into()))?;
            let picture = self.resize(picture);
            for channel in 0..3 {
                let (mean, std) = (means[channel], stds[channel]);
                pixels.extend(
                    picture.pixels().map(|p| (f32::from(p.0[channel]) / 255.0 - mean) / std),
                );
            }
        }
        Ok(Tensor::from_vec(pixels, (samples, 3, crop_height, crop_width), &Device::Cpu)?)
    }

    fn resize(&self, picture: ImageBuffer<Rgb<u8>, Vec<u8>>) -> ImageBuffer<Rgb<u8>, Vec<u8>> {
        let (width, height) = picture.dimensions();
        let (short, edge) = (width.min(height), self.edge());
        let side = |n: u32| (u64::from(n) * u64::from(edge) / u64::from(short)) as u32;
        let (width, height) = (side(width), side(height));
        let picture = if short == edge {
            picture
        } else {
            imageops::resize(&picture, width, height, FilterType::CatmullRom)
        };
        let Size { height: crop_height, width: crop_width } = self.crop();
        let (left, top) =
            (i64::from(width) - i64::from(crop_width), i64::from(height) - i64::from(crop_height));
        let mut canvas = ImageBuffer::new(crop_width, crop_height);
        imageops::replace(&mut canvas, &picture, -left / 2, -top / 2);
        canvas
    }
}
