//! A recipe, run or planned.

use super::chain::{self, run_method};
use super::folder::Job;
use super::plan::{Done, Plan};
use crate::error::{Result, refuse};
use crate::recipe::Recipe;
use secateur_eval::Report;
use secateur_models::Observer;

/// Makes a new model as the recipe says, and a report of what it cost. Everything that can be known
/// of the model, the methods, their settings, the files and the memory is checked before anything
/// is computed.
///
/// # Errors
/// If the request is wrong ([`Error::is_request`](crate::Error::is_request)), the observer stops
/// the work, or the work fails. The output is not there then; what was finished is kept for
/// [`Recipe::resume`].
pub fn run(recipe: &Recipe, observer: &dyn Observer) -> Result<Report> {
    match work(recipe, false, observer)? {
        Done::Model(report) => Ok(*report),
        Done::Plan(_) => refuse!("the recipe made no model"),
    }
}

/// What [`run`] would do, and what that takes: from configurations and headers alone.
///
/// # Errors
/// If the request is wrong, or the model cannot be read.
pub fn plan(recipe: &Recipe, observer: &dyn Observer) -> Result<Plan> {
    match work(recipe, true, observer)? {
        Done::Plan(plan) => Ok(plan),
        Done::Model(_) => refuse!("the recipe made a model"),
    }
}

fn work(recipe: &Recipe, dry_run: bool, observer: &dyn Observer) -> Result<Done> {
    recipe.check()?;
    let command = recipe.command()?;
    let job = Job {
        model: &recipe.model,
        out: recipe.out.as_deref(),
        file: recipe.file.as_deref(),
        force: recipe.force,
        resume: recipe.resume,
        dry_run,
        part: false,
        later: 0.0,
        command: &command,
        observer,
    };
    match recipe.methods.as_slice() {
        [] => refuse!("the recipe has no methods"),
        [method] => {
            let mut method = method.clone();
            let shared = method.shared_mut();
            *shared = std::mem::take(shared).or(&recipe.shared);
            run_method(&method, &job)
        }
        _ => chain::run(recipe, &job),
    }
}
