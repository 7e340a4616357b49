//! Times the OBS solver on one layer: `solve --input FILE --sparsity 0.5 | --pattern 2:4 --repeats
//! N` reads `weight` and `hessian` and prints one line of JSON.

#![expect(clippy::print_stdout, reason = "a benchmark tells its figures")]

use anyhow::{Context, Result, bail};
use candle_core::Device;
use secateur_prune::{InputStatistics, Method, Obs, Pattern, ToPrune, hessian_error};
use std::time::Instant;

fn main() -> Result<()> {
    let (mut input, mut pattern, mut repeats) = (None, Pattern::Unstructured(0.5), 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--input" => input = Some(value),
            "--sparsity" => pattern = Pattern::unstructured(value.parse()?)?,
            "--pattern" => pattern = value.parse()?,
            "--repeats" => repeats = value.parse::<usize>()?,
            _ => bail!("{name} is not an option"),
        }
    }
    let input = input.context("--input FILE is needed")?;
    let tensors = candle_core::safetensors::load(input, &Device::Cpu)?;
    let tensor = |name: &str| tensors.get(name).with_context(|| format!("no tensor {name}"));
    let (weight, hessian) = (tensor("weight")?.clone(), tensor("hessian")?.clone());
    let columns = || vec![0.0; hessian.dims()[0]];
    let statistics = InputStatistics {
        hessian: hessian.clone(),
        weighted_sums: columns(),
        weighted_rows: 0.0,
        sums: columns(),
        squares: columns(),
        rows: 0,
    };
    let layer = ToPrune { layer: "layer".into(), weight, pattern };
    let (mut best, mut error) = (f64::INFINITY, 0.0);
    for _ in 0..repeats {
        let mut pruned = [layer.clone()];
        let start = Instant::now();
        Obs.prune(&mut pruned, &statistics)?;
        best = best.min(start.elapsed().as_secs_f64());
        error = hessian_error(&layer.weight, &pruned[0].weight, &hessian)?;
    }
    println!("{}", serde_json::json!({"seconds": best, "error": error}));
    Ok(())
}
