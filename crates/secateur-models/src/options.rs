//! Options of a configuration.

use serde_json::{Map, Value};

/// Refuses an option whose value is not the one of `supported`, which is also what it is where it is absent.
///
/// # Errors
/// If there is one, with its name and value.
pub(crate) fn only(options: &Map<String, Value>, supported: &[(&str, Value)]) -> Result<(), String> {
    let same = |found: &Value, value: &Value| found == value || (value.is_number() && found.as_f64() == value.as_f64());
    for (name, value) in supported {
        if let Some(found) = options.get(*name).filter(|found| !same(found, value)) {
            return Err(format!("{name} {found} is not supported; {value} is"));
        }
    }
    Ok(())
}
