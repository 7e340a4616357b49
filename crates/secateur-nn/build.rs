//! Compiles the kernels for NVIDIA GPUs, where the feature `cuda` asks for them.

use std::path::PathBuf;
use std::process::Command;
use std::{env, error, fs};

const SOURCE: &str = "src/ops/cuda/kernels.cu";
/// What it includes.
const INCLUDED: [&str; 2] = ["src/ops/cuda/attention.cuh", "src/ops/cuda/solver.cuh"];

/// Cards with machine code of their own. Others translate that of the least one when they first run
/// it.
const ARCHITECTURES: [u32; 6] = [80, 86, 89, 90, 100, 120];

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={SOURCE}");
    INCLUDED.iter().for_each(|file| println!("cargo::rerun-if-changed={file}"));
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "SECATEUR_CUDA_ARCHITECTURES"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    let in_toolkit =
        |home: &str| env::var_os(home).map(|home| PathBuf::from(home).join("bin/nvcc"));
    let nvcc = env::var_os("NVCC")
        .map(PathBuf::from)
        .or_else(|| in_toolkit("CUDA_HOME").or_else(|| in_toolkit("CUDA_PATH")))
        .unwrap_or_else(|| "nvcc".into());
    let architectures = match env::var("SECATEUR_CUDA_ARCHITECTURES") {
        Ok(list) => list.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?,
        Err(_) => ARCHITECTURES.to_vec(),
    };
    let least = *architectures.iter().min().ok_or("SECATEUR_CUDA_ARCHITECTURES is empty")?;
    let output = PathBuf::from(env::var("OUT_DIR")?).join("kernels.fatbin");
    let mut command = Command::new(&nvcc);
    command.args(["-O3", "-std=c++17", "--threads", "0", "-fatbin", "-o"]).arg(&output);
    command.arg(format!("-gencode=arch=compute_{least},code=compute_{least}"));
    for one in architectures {
        command.arg(format!("-gencode=arch=compute_{one},code=sm_{one}"));
    }
    let status = command.arg(SOURCE).status().map_err(|error| {
        format!("{}: {error}: the feature `cuda` needs nvcc of a CUDA toolkit", nvcc.display())
    })?;
    if !status.success() || !fs::exists(&output)? {
        return Err(format!("nvcc could not compile {SOURCE}").into());
    }
    Ok(())
}
