//! The methods by name.

use crate::methods::dsnot::Dsnot;
use crate::methods::l1::L1;
use crate::methods::magnitude::Magnitude;
use crate::methods::method::Method;
use crate::methods::obs::Obs;
use crate::methods::structured::StructuredMethod;
use crate::methods::taylor::Taylor;
use crate::methods::wanda::Wanda;

/// A method that chooses what to remove.
pub struct NamedMethod {
    /// The name that users give it.
    pub name: &'static str,
    /// A description in one line.
    pub about: &'static str,
    /// The implementation for weights, or `None` if the method removes only heads and neurons.
    pub weights: Option<&'static dyn Method>,
    /// The implementation for heads and neurons, or `None` if the method removes only weights.
    pub structured: Option<fn() -> Box<dyn StructuredMethod>>,
}

/// All methods, the default first.
pub static METHODS: [NamedMethod; 7] = [
    NamedMethod {
        name: "obs",
        about: "OBS-Diff: Optimal Brain Surgeon with a timestep-weighted Hessian",
        weights: Some(&Obs),
        structured: Some(|| Box::new(Obs)),
    },
    NamedMethod {
        name: "wanda",
        about: "Wanda: the smallest products of weight and input norm, per row",
        weights: Some(&Wanda),
        structured: None,
    },
    NamedMethod {
        name: "dsnot",
        about: "DSnoT: Wanda's choice, then swaps that keep each row's expected output",
        weights: Some(&Dsnot::Wanda),
        structured: None,
    },
    NamedMethod {
        name: "dsnot-hessian",
        about: "DSnoT, starting from the weights with the least effect by the Hessian, per row",
        weights: Some(&Dsnot::Hessian),
        structured: None,
    },
    NamedMethod {
        name: "magnitude",
        about: "The smallest weights",
        weights: Some(&Magnitude),
        structured: None,
    },
    NamedMethod {
        name: "l1",
        about: "Heads and neurons with the smallest weights",
        weights: None,
        structured: Some(|| Box::new(L1)),
    },
    NamedMethod {
        name: "taylor",
        about: "Diff-Pruning: heads and neurons with the least effect on the training loss, by its \
                gradients",
        weights: None,
        structured: Some(|| Box::<Taylor>::default()),
    },
];

#[cfg(test)]
mod tests {
    use super::METHODS;

    #[test]
    fn names_are_the_methods_own() {
        for method in &METHODS {
            let weights = method.weights.map(|weights| weights.name());
            let structured = method.structured.map(|structured| structured().name());
            let names: Vec<_> = weights.into_iter().chain(structured).collect();
            assert!(
                !names.is_empty() && names.iter().all(|name| *name == method.name),
                "{names:?}"
            );
        }
    }
}
