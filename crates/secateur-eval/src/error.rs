//! The errors of this crate.

use secateur_models::files::shown;
use std::path::PathBuf;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while pictures are compared or a report is read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pixel buffer does not hold height x width x 3 values.
    #[error(
        "a picture of {width} x {height} needs {width} * {height} * 3 values (RGB, row by row), \
         but {found} were given"
    )]
    PixelCount {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Length of the buffer.
        found: usize,
    },
    /// A side of the picture is zero or larger than can be encoded.
    #[error(
        "a picture of {width} x {height} cannot be used: each side must be between 1 and 65536 \
         pixels"
    )]
    PictureSide {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
    },
    /// A pixel is NaN or infinite.
    #[error(
        "value {index} of the picture is not a finite number: the model that made it overflowed; \
         run it in float32 or \
         check its weights"
    )]
    PixelNotFinite {
        /// Index into the pixel buffer.
        index: usize,
    },
    /// Two pictures that are compared have different sizes.
    #[error(
        "pictures of {first_width} x {first_height} and {second_width} x {second_height} cannot be \
         compared: generate \
         both at the same size"
    )]
    PictureSizes {
        /// Width of the first picture in pixels.
        first_width: usize,
        /// Height of the first picture in pixels.
        first_height: usize,
        /// Width of the second picture in pixels.
        second_width: usize,
        /// Height of the second picture in pixels.
        second_height: usize,
    },
    /// The pictures are smaller than the window of the metric.
    #[error(
        "SSIM looks at windows of {window} x {window} pixels, and the pictures are {width} x \
         {height}: generate larger \
         pictures"
    )]
    SmallerThanWindow {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Side of the window in pixels.
        window: usize,
    },
    /// Two buffers that are compared have different lengths.
    #[error(
        "buffers of {first} and {second} values cannot be compared: both must have the same shape"
    )]
    Lengths {
        /// Length of the first buffer.
        first: usize,
        /// Length of the second buffer.
        second: usize,
    },
    /// A summary of no values was requested.
    #[error("there are no values to summarise: evaluate at least one prompt")]
    NoValues,
    /// The folder for the report does not exist.
    #[error("cannot write the report: {path} is not a folder; create it first", path = shown(path))]
    NotAFolder {
        /// The path given as the folder.
        path: PathBuf,
    },
    /// A report is not valid JSON or lacks a field.
    #[error("cannot read the report: {source}; write it again with this version")]
    Json {
        /// Where and why the JSON is invalid.
        source: serde_json::Error,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] secateur_models::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A report was written in a format that this version does not know.
    #[error(
        "the report has format version {found}, and this version reads {known}: use a matching \
         secateur"
    )]
    FormatVersion {
        /// The version in the file.
        found: u64,
        /// The version this crate reads.
        known: u32,
    },
}
