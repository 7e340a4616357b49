//! Tests that differ only in their arguments.

/// A test for each name, which calls the check above it with the arguments behind it.
macro_rules! tests {
    ($($check:ident { $($name:ident($($argument:expr),*);)+ })+) => {
        $($(#[test]
        fn $name() {
            $check($($argument),*);
        })+)+
    };
}
