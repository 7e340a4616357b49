//! One RGB picture in memory.

use crate::error::{Error, Result};
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use image::{ImageFormat, RgbImage};

use secateur_models::files::write_atomically;

/// The largest side of a picture. Up to it, PNG encoding cannot overflow.
const LARGEST_SIDE: usize = 65_536;

/// An RGB picture: values in \[0, 1\], height x width x 3, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    width: usize,
    height: usize,
    /// The pixels, which clones share.
    pixels: Arc<Vec<f32>>,
}

impl Picture {
    /// Creates a picture of `pixels` (height x width x 3, row by row, RGB). Values outside \[0, 1\]
    /// are clamped, as in diffusers after the VAE.
    ///
    /// # Errors
    /// A side is zero or above 65536, the length of the buffer is not `height * width * 3`, or a
    /// value is NaN or infinite.
    pub fn new(width: usize, height: usize, mut pixels: Vec<f32>) -> Result<Self> {
        if !(1..=LARGEST_SIDE).contains(&width) || !(1..=LARGEST_SIDE).contains(&height) {
            return Err(Error::PictureSide { width, height });
        }
        // In u64 the product of the two sides cannot overflow, on any platform.
        if pixels.len() as u64 != width as u64 * height as u64 * 3 {
            return Err(Error::PixelCount { width, height, found: pixels.len() });
        }
        if let Some(index) = pixels.iter().position(|value| !value.is_finite()) {
            return Err(Error::PixelNotFinite { index });
        }
        for value in &mut pixels {
            *value = value.clamp(0.0, 1.0);
        }
        Ok(Self { width, height, pixels: Arc::new(pixels) })
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The values in \[0, 1\]: height x width x 3, row by row.
    pub fn pixels(&self) -> &[f32] {
        &self.pixels
    }

    /// Encodes the picture as an 8-bit PNG file. Values are rounded as in diffusers'
    /// `numpy_to_pil`: `round(255 x)`, where numpy rounds halves to even.
    pub fn to_png(&self) -> Vec<u8> {
        encode_png(&self.to_rgb8())
    }

    /// Writes the picture as an 8-bit PNG file (see [`Picture::to_png`]), atomically.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_png(&self, path: impl AsRef<Path>) -> Result<()> {
        Ok(write_atomically(path.as_ref(), &self.to_png())?)
    }

    pub(crate) fn to_rgb8(&self) -> RgbImage {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the values are in [0, 255]"
        )]
        let bytes =
            self.pixels.iter().map(|value| (value * 255.0).round_ties_even() as u8).collect();
        #[expect(clippy::cast_possible_truncation, reason = "new() bounds the sides")]
        let (width, height) = (self.width as u32, self.height as u32);
        RgbImage::from_raw(width, height, bytes).expect("new() checks the number of values")
    }
}

/// Encodes `image` as a PNG file.
pub(crate) fn encode_png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, ImageFormat::Png)
        .expect("a picture with valid sides can always be encoded into memory");
    bytes.into_inner()
}

pub(crate) fn check_same_size(a: &Picture, b: &Picture) -> Result<()> {
    if (a.width(), a.height()) == (b.width(), b.height()) {
        return Ok(());
    }
    Err(Error::PictureSizes {
        first_width: a.width(),
        first_height: a.height(),
        second_width: b.width(),
        second_height: b.height(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn png_holds_the_rounded_and_clamped_values() {
        // 0.5 / 255 and 1.5 / 255 are the halves that numpy rounds to even: 0 and 2.
        let halves = [0.5 / 255.0, 1.5 / 255.0, 0.5];
        let pixels = vec![0.0, 1.0, 0.2, -3.0, 7.0, 100.4 / 255.0, halves[0], halves[1], halves[2]];
        let png = Picture::new(3, 1, pixels).unwrap().to_png();
        let decoded = image::load_from_memory(&png).unwrap().to_rgb8();
        assert_eq!(decoded.dimensions(), (3, 1));
        assert_eq!(decoded.as_raw(), &[0, 255, 51, 0, 255, 100, 0, 2, 128]);
    }

    #[test]
    fn rows_come_before_columns() {
        let pixels = vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0];
        let decoded = image::load_from_memory(&Picture::new(1, 2, pixels).unwrap().to_png())
            .unwrap()
            .to_rgb8();
        assert_eq!(decoded.get_pixel(0, 1).0, [0, 255, 0]);
    }

    #[test]
    fn wrong_buffers_are_refused() {
        assert!(matches!(
            Picture::new(2, 2, vec![0.0; 11]),
            Err(Error::PixelCount { found: 11, .. })
        ));
        assert!(matches!(Picture::new(0, 2, vec![]), Err(Error::PictureSide { .. })));
        assert!(matches!(Picture::new(usize::MAX, 2, vec![]), Err(Error::PictureSide { .. })));
        assert!(matches!(
            Picture::new(1, 1, vec![0.0, f32::NAN, 0.0]),
            Err(Error::PixelNotFinite { index: 1 })
        ));
    }

    #[test]
    fn save_png_names_the_file_it_could_not_write() {
        let folder = tempfile::tempdir().unwrap();
        let picture = Picture::new(1, 1, vec![0.0; 3]).unwrap();
        picture.save_png(folder.path().join("a.png")).unwrap();
        assert_eq!(std::fs::read(folder.path().join("a.png")).unwrap(), picture.to_png());
        let error = picture.save_png(folder.path().join("missing/a.png")).unwrap_err().to_string();
        assert!(error.contains("a.png"), "{error}");
    }
}
