//! The tests of a file with other vectors.

#[test]
fn other_vectors_give_the_same() {
    // The whole file again, in a process that is set to use other vectors.
    if std::env::var_os("SECATEUR_VECTORS").is_some() {
        return;
    }
    for vectors in ["none", "avx2"] {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .env("SECATEUR_VECTORS", vectors)
            .output();
        let run = run.unwrap();
        assert!(run.status.success(), "{vectors}: {}", String::from_utf8_lossy(&run.stdout));
    }
}
