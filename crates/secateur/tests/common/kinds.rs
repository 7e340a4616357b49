//! The same test for several kinds of commands.

/// A test for each kind of command, which calls `$check` with it.
macro_rules! test_kinds {
    ($check:ident: $($name:ident $kind:ident),+) => {
        $(#[test]
        fn $name() {
            $check(UnitKind::$kind);
        })+
    };
}
