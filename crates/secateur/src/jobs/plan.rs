//! The outcome of a request for a new model.

use crate::error::Result;
use secateur_eval::Report;
use secateur_models::files::{Limit, read_json, shown};
use secateur_models::{ModelFolder, Observer, OutputFolder};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// A new model, or the plan to make it.
pub(crate) enum Done {
    /// The model was written, with this report.
    Model(Box<Report>),
    /// Nothing was written. The plan says what would be done.
    Plan(Plan),
}

/// The plan of a run, for people and for machines.
#[derive(Debug, Serialize)]
#[serde(transparent)]
#[non_exhaustive]
pub struct Plan {
    /// The plan in words and tables.
    #[serde(skip)]
    pub text: String,
    /// All figures by name.
    pub json: Value,
    /// The estimated time in seconds.
    #[serde(skip)]
    pub seconds: f64,
    /// What prevents the run, if anything does.
    #[serde(skip)]
    pub lacks: Option<String>,
}

impl Done {
    /// Plans the changes to the model of a folder.
    pub(crate) fn plan(
        folder: &ModelFolder,
        text: String,
        plan: &impl Serialize,
        seconds: f64,
    ) -> Result<Self> {
        let lacks = folder.check_whole().err().map(|error| error.to_string());
        Ok(Self::Plan(Plan { text, json: serde_json::to_value(plan)?, seconds, lacks }))
    }
}

/// Returns the report of a run that was finished before it was resumed.
pub(crate) fn finished(output: &OutputFolder<'_>, observer: &dyn Observer) -> Result<Done> {
    observer.say(&format!("{} is complete: nothing is left to do", shown(output.target())));
    report_in(output.target()).map(|report| Done::Model(Box::new(report)))
}

/// Reads the report in a folder.
pub(crate) fn report_in(folder: &Path) -> Result<Report> {
    Ok(read_json(&folder.join("report.json"), Limit::Report)?)
}
