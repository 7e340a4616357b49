//! Settings of the device and the number type.

use super::text;
use clap::{Args, ValueEnum};
use secateur_nn::DeviceChoice;
use serde::{Deserialize, Serialize};

/// Where to compute.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct DeviceSettings {
    /// Device to compute on: auto (the first NVIDIA GPU, or the CPU if there is none), cpu, or
    /// cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE")]
    #[serde(with = "text")]
    pub device: Option<DeviceChoice>,
    /// Number type to compute in on a GPU; the CPU always computes in f32 [default: auto]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<DtypeName>,
}

/// The type of the numbers that are computed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DtypeName {
    /// The type of the checkpoint, with bf16 in place of f16; f32 on the CPU
    #[default]
    Auto,
    /// 32-bit floating point
    F32,
    /// 16-bit floating point, up to 65504
    F16,
    /// 16-bit floating point with the range of f32 and less precision
    Bf16,
}
