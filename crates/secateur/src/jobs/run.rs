//! Running and planning of recipes.

use super::chain::{self, run_method};
use super::folder::Job;
use super::plan::{Done, Plan};
use crate::error::{Result, refuse};
use crate::recipe::Recipe;
use secateur_eval::Report;
use secateur_models::Observer;

/// Makes a new model by a recipe, and a report of its cost. Everything that can be checked before
/// the computation is checked first: the model, the methods, their settings, the files and the
/// memory.
///
/// # Errors
/// If the request is invalid ([`Error::is_request`](crate::Error::is_request)), the observer stops
/// the work, or the work fails. The output does not exist then. Finished parts are kept for
/// [`Recipe::resume`].
pub fn run(recipe: &Recipe, observer: &dyn Observer) -> Result<Report> {
    match work(recipe, false, observer)? {
        Done::Model(report) => Ok(*report),
        Done::Plan(_) => refuse!("the recipe made no model"),
    }
}

/// Returns what [`run`] would do, and the time and memory for it, from configurations and headers
/// alone.
///
/// # Errors
/// If the request is invalid, or the model cannot be read.
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
