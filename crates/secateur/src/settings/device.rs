//! Settings of the device and the number type.

use super::text;
use clap::{Args, ValueEnum};
use secateur_nn::DeviceChoice;
use serde::{Deserialize, Serialize};

/// Where to compute.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct DeviceSettings {
    /// Where to compute: auto (the first NVIDIA GPU, or the CPU where there is none), cpu, or
    /// cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE")]
    #[serde(with = "text")]
    pub device: Option<DeviceChoice>,
    /// Type of the numbers on a GPU [default: the checkpoint's, or bf16 for f16]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<DtypeName>,
}

/// The type of the numbers that are computed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DtypeName {
    /// The checkpoint's, or bf16 for f16; f32 on the CPU
    #[default]
    Auto,
    /// 32 bits
    F32,
    /// 16 bits, of numbers up to 65504
    F16,
    /// 16 bits, of numbers as large as those of f32
    Bf16,
}
