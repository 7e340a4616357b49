//! The components of a model folder, without their weights.

use crate::error::{Result, invalid, refuse};
use crate::families::DenoiserConfig;
use secateur_nn::Placement;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// The file that lists a model's components.
pub(crate) const INDEX: &str = "model_index.json";

/// The components of a model folder, as `model_index.json` lists them.
#[derive(Clone, Debug)]
pub(crate) struct Components {
    /// The folder.
    pub(crate) path: PathBuf,
    /// The requested variant of the weight files.
    pub(crate) variant: Option<String>,
    /// `model_index.json`.
    pub(crate) index: Map<String, Value>,
    /// The device and type that the components are loaded to.
    pub(crate) placement: Placement,
    /// The denoiser's configuration.
    pub(crate) denoiser: Arc<dyn DenoiserConfig>,
}

impl Components {
    /// The names of the model's classes.
    ///
    /// # Errors
    /// If `id2label` is not a table of numbers and names.
    pub(crate) fn labels(&self) -> Result<Labels> {
        let classes = self.denoiser.classes();
        let Some(labels) = self.index("id2label") else {
            return Ok(Labels { names: BTreeMap::new(), classes });
        };
        let label = |(number, name): (&String, &Value)| {
            Some((number.parse().ok()?, name.as_str()?.to_owned()))
        };
        match labels.as_object().and_then(|labels| labels.iter().map(label).collect()) {
            Some(names) => Ok(Labels { names, classes }),
            None => {
                invalid!(
                    self.path.join(INDEX),
                    "id2label is not an object of numbers and their names"
                )
            }
        }
    }

    /// An entry of `model_index.json`.
    pub(crate) fn index(&self, key: &str) -> Option<&Value> {
        self.index.get(key)
    }

    /// Whether a component is present.
    pub(crate) fn has(&self, component: &str) -> bool {
        self.class_of(component).is_some()
    }

    /// The class of a component that is present.
    pub(crate) fn class_of(&self, component: &str) -> Option<&str> {
        class_of(&self.index, component)
    }
}

/// The class of a component that is present.
pub(crate) fn class_of<'a>(index: &'a Map<String, Value>, component: &str) -> Option<&'a str> {
    let class = index.get(component)?.get(1)?.as_str()?;
    Some(class.strip_suffix("Fast").unwrap_or(class))
}

/// The class labels of a model, from `id2label` of `model_index.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    names: BTreeMap<u32, String>,
    /// Number of classes. Some may have no name.
    classes: usize,
}

impl Labels {
    /// The number of a label, from its number, its name, or one of its comma-separated names.
    ///
    /// # Errors
    /// If no label has this name.
    pub fn find(&self, text: &str) -> Result<u32> {
        if let Ok(number) = text.parse::<u32>() {
            return match (number as usize) < self.classes {
                true => Ok(number),
                false => refuse!("label {number}, and the model knows {} classes", self.classes),
            };
        }
        let called = |name: &str| name == text || name.split(',').any(|one| one.trim() == text);
        let found: Vec<u32> =
            self.names.iter().filter(|(_, name)| called(name)).map(|(number, _)| *number).collect();
        match found[..] {
            [number] => Ok(number),
            [] if self.names.is_empty() => {
                refuse!("{text:?} is not a number, and this model names no labels")
            }
            [] => {
                let some: Vec<&str> = self.names.values().take(3).map(String::as_str).collect();
                let known = format!("it knows {} such as {}", self.names.len(), some.join(", "));
                refuse!("{text:?} is not a label of this model: {known}")
            }
            _ => refuse!("{text:?} is the name of the labels {found:?}: give a number"),
        }
    }

    /// Whether no class has a name.
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Number and name of each named class.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.names.iter().map(|(number, name)| (*number, name.as_str()))
    }
}
