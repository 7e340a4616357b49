//! `model_index.json`: the class of a model folder, and its components.

use crate::autoencoders::{AutoencoderConfig, autoencoder_config_of};
use crate::classes::{CLASSES, Component, INDEX, PipelineClass, VAE, class_of};
use crate::error::{Error, Result, invalid, shown};
use crate::families::{DenoiserConfig, denoiser_config_of};
use crate::files::{Limit, SingleFile, config_fields, read_json, variants};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a model's sampler is described.
pub(crate) const SCHEDULER_CONFIG: &str = "scheduler/scheduler_config.json";

/// Reads the `model_index.json` of a model folder and checks its components. Returns the pipeline
/// class, too.
pub(crate) fn read_index(path: &Path) -> Result<(&'static PipelineClass, Map<String, Value>)> {
    if path.is_file() {
        let kind = SingleFile::open(path)?.kind();
        invalid!(
            path,
            "a {kind} checkpoint in one file, not a model folder: `secateur convert` makes one of \
             it, with the configurations of a diffusers folder of the same kind of model, which \
             `like FOLDER` names"
        );
    }
    let index_path = path.join(INDEX);
    if !index_path.is_file() {
        let problem = match nearby(path) {
            _ if !path.exists() => "no such folder".into(),
            Some(other) => format!("not a model folder itself: give {}", shown(&other)),
            None => "not a model folder in the diffusers layout: no model_index.json".into(),
        };
        return Err(Error::invalid(path, problem));
    }
    let index: Map<String, Value> = read_json(&index_path, Limit::Config)?;
    let name = index.get("_class_name").and_then(Value::as_str).unwrap_or("(none)");
    let Some(class) = CLASSES.into_iter().find(|class| class.name == name) else {
        let supported: Vec<&str> = CLASSES.iter().map(|class| class.name).collect();
        invalid!(
            &index_path,
            "_class_name {name:?} is not supported; supported: {}",
            supported.join(", ")
        );
    };
    for component in class.components {
        check_component(component, path, &index)?;
    }
    Ok((class, index))
}

/// Finds a model folder near `folder`: above it, in it, or in a snapshot of the hub's cache.
fn nearby(folder: &Path) -> Option<PathBuf> {
    let inside = |folder: &Path| {
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
    };
    let mut below: Vec<_> = inside(folder).chain(inside(&folder.join("snapshots"))).collect();
    below.sort();
    let above = folder.canonicalize().ok()?.parent().map(Path::to_owned);
    above.into_iter().chain(below).find(|folder| folder.join(INDEX).is_file())
}

/// Whether a component is of a class that is supported, and its folder there.
fn check_component(component: &Component, path: &Path, index: &Map<String, Value>) -> Result<()> {
    let Component { name, classes, optional } = component;
    match class_of(index, name) {
        None if *optional => return Ok(()),
        Some(class) if classes.is_empty() || classes.contains(&class) => {}
        found => {
            let found = found.unwrap_or("nothing");
            let supported = if classes.is_empty() { "one" } else { &classes.join(" or ") };
            invalid!(path.join(INDEX), "component {name} is {found}; {supported} is supported");
        }
    }
    if !path.join(name).is_dir() {
        invalid!(path, "component {name} is listed in model_index.json, and its folder is missing");
    }
    Ok(())
}

/// Warnings about tensors of a file or folder that nothing reads.
pub(crate) fn unread(origin: &str, names: &[String]) -> Option<String> {
    match names {
        [] => None,
        [name] => Some(format!("{origin}: tensor {name} is not read")),
        [first, ..] => Some(format!(
            "{origin}: {} tensors are not read, the first of them {first}",
            names.len()
        )),
    }
}

/// The denoiser's configuration in the model folder `path`. It is of the class that
/// `model_index.json` lists, whatever it says itself, and as the pipeline corrects it.
pub(crate) fn denoiser_of(
    class: &PipelineClass,
    path: &Path,
    index: &Map<String, Value>,
) -> Result<Arc<dyn DenoiserConfig>> {
    let path = path.join(class.denoiser).join("config.json");
    let mut fields = config_fields(&path)?;
    let listed = class_of(index, class.denoiser).unwrap_or_default();
    let own = fields.insert("_class_name".into(), listed.into());
    (class.repair)(&mut fields);
    denoiser_config_of(&path, &fields).map_err(listed_as(listed, own))
}

/// An error in a configuration that names another class than the one it is read as.
fn listed_as(listed: &str, own: Option<Value>) -> impl FnOnce(Error) -> Error {
    move |error| match (error, own.as_ref().and_then(Value::as_str).filter(|own| *own != listed)) {
        (Error::Invalid { path, problem }, Some(own)) => Error::invalid(
            path,
            format!("{problem} (model_index.json lists a {listed}, and _class_name is {own})"),
        ),
        (error, _) => error,
    }
}

/// The configuration of the autoencoder in the model folder `path`, where the class has one.
pub(crate) fn autoencoder_of(
    class: &PipelineClass,
    path: &Path,
    index: &Map<String, Value>,
) -> Result<Option<Arc<dyn AutoencoderConfig>>> {
    if !class.components.iter().any(|component| component.name == VAE.name) {
        return Ok(None);
    }
    let (listed, path) =
        (class_of(index, VAE.name).unwrap_or_default(), path.join(VAE.name).join("config.json"));
    let own = config_fields(&path)?.get("_class_name").cloned();
    autoencoder_config_of(&path, listed).map(Some).map_err(listed_as(listed, own))
}

/// Whether any component has weights of that variant.
pub(crate) fn check_variant(class: &PipelineClass, path: &Path, variant: &str) -> Result<()> {
    let mut found = BTreeSet::new();
    for component in class.components.iter().filter(|component| component.has_weights()) {
        let folder = path.join(component.name);
        if folder.is_dir() {
            found.extend(variants(&folder, component.stem())?);
        }
    }
    if found.contains(variant) {
        return Ok(());
    }
    let found: Vec<_> = found.iter().map(|v| if v.is_empty() { "(none)" } else { v }).collect();
    invalid!(
        path,
        "no component has weights of variant {variant:?}; variants found: {}",
        found.join(", ")
    )
}
