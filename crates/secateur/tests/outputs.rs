//! Outputs: what is replaced, what never is, and what a run leaves behind.

mod common;
#[path = "../../secateur-models/tests/common/copy.rs"]
mod copy;
use common::{entries, fail, model, secateur, succeed};
use copy::copy_folder;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ONE: [&str; 5] = ["--prompt", "a cat", "--steps", "1", "--quiet"];

fn generate(out: &Path) -> Command {
    let mut command = secateur();
    command.arg("generate").arg(model("emoji-mmdit")).arg("--out").arg(out).args(ONE);
    command
}

fn prune(model: &Path, out: &Path) -> Command {
    let mut command = secateur();
    command.arg("prune").arg(model).arg("--out").arg(out);
    command.args(["--samples", "1", "--steps", "1", "--report-samples", "0", "--quiet"]);
    command.args(["--include", "transformer_blocks.0.attn.*"]);
    command
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// A copy of the bundled model, to be changed.
fn copied(folder: &Path) -> PathBuf {
    let copy = folder.join("model");
    copy_folder(&model("emoji-mmdit"), &copy);
    copy
}

#[test]
fn force_replaces_what_secateur_writes_and_nothing_else() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    // Pictures, an empty folder, and a model.
    succeed(&mut generate(&at("out")));
    assert_eq!(entries(&at("out")), ["0000.png"]);
    succeed(generate(&at("out")).arg("--force"));
    assert_eq!(entries(&at("out")), ["0000.png"]);
    std::fs::create_dir(at("empty")).unwrap();
    succeed(prune(&model("emoji-mmdit"), &at("empty")).arg("--force"));
    succeed(prune(&model("emoji-mmdit"), &at("empty")).args(["--sparsity", "0.4", "--force"]));
    succeed(generate(&at("empty")).arg("--force"));
    assert_eq!(entries(&at("empty")), ["0000.png"]);

    succeed(&mut prune(&model("emoji-mmdit"), &at("pruned")));
    write(&at("pruned/transformer/notes.doc"), "mine");
    write(&at("home/docs/thesis.txt"), "mine");
    write(&at("home/0000.png"), "mine");
    write(&at("file"), "mine");
    for (out, words) in [
        ("pruned", "transformer/notes.doc in it was not written by secateur"),
        ("home", "secateur did not write it"),
        ("file", "it is not a folder"),
    ] {
        let error = fail(generate(&at(out)).arg("--force"), 1);
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(read(&at("pruned/transformer/notes.doc")), "mine");
    assert_eq!(read(&at("home/docs/thesis.txt")), "mine");
    assert_eq!(entries(temporary.path()), ["empty", "file", "home", "out", "pruned"]);
}

#[test]
#[cfg(unix)]
fn force_replaces_no_place_that_is_in_use() {
    use std::os::unix::fs::symlink;
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let refused = |command: &mut Command, words: &str| {
        let error = fail(command.arg("--force"), 1);
        assert!(error.contains(words), "{words:?} is not in {error:?}");
    };
    // The current folder, by another name.
    succeed(&mut generate(&at("here")));
    symlink(at("here"), at("link")).unwrap();
    refused(generate(Path::new("../here")).current_dir(at("link")), "the current folder is in it");
    refused(&mut generate(&at("link")), "it is a link");
    // A component that is a link, and the file of one.
    let linked = copied(temporary.path());
    std::fs::create_dir(at("weights")).unwrap();
    std::fs::rename(linked.join("transformer"), at("weights/transformer")).unwrap();
    symlink("../weights/transformer", linked.join("transformer")).unwrap();
    std::fs::create_dir(at("vae")).unwrap();
    let file = "diffusion_pytorch_model.safetensors";
    std::fs::rename(linked.join("vae").join(file), at("vae/0000.png")).unwrap();
    symlink(at("vae/0000.png"), linked.join("vae").join(file)).unwrap();
    for out in ["weights", "weights/transformer", "vae", "model"] {
        refused(&mut prune(&linked, &at(out)), "overlap");
    }
    // What is read through links, as files.
    succeed(&mut prune(&linked, &at("pruned")));
    for path in ["transformer", "vae", "vae/diffusion_pytorch_model.safetensors"] {
        assert!(!at("pruned").join(path).is_symlink(), "{path}");
    }
    assert_eq!(entries(temporary.path()), ["here", "link", "model", "pruned", "vae", "weights"]);
}

/// A folder, or file, that appears at the output while a run works stays.
#[test]
fn what_appears_meanwhile_stays() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let mut child =
        generate(&at("out")).args(["--steps", "40"]).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while !at(".out.secateur/content").exists() {
        assert!(start.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(2));
    }
    write(&at("out/thesis.txt"), "mine");
    let ended = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{told}");
    assert!(told.contains("exists already") && told.contains(".out.secateur/complete"), "{told}");
    assert_eq!(entries(&at("out")), ["thesis.txt"]);
    assert_eq!(entries(&at(".out.secateur/complete")), ["0000.png"]);
    // It is not thrown away unasked.
    std::fs::rename(at("out"), at("mine")).unwrap();
    let error = fail(&mut generate(&at("out")), 1);
    assert!(error.contains("complete in") && error.contains("--force"), "{error}");
    succeed(generate(&at("out")).arg("--force"));
    assert_eq!(entries(temporary.path()), ["mine", "out"]);
}

#[test]
fn a_hidden_folder_that_is_not_ours_is_left_alone() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let foreign =
        [".out.unfinished", ".out.run", ".out.1-slim", ".out.abcdef.partial", ".out.0123.secateur"];
    foreign.iter().for_each(|name| write(&at(name).join("t"), "mine"));
    succeed(&mut generate(&at("out")));
    write(&at(".other.secateur/secateur.json"), "{\"folders\": [\"../out\", \"\"]}");
    let error = fail(&mut generate(&at("other")), 1);
    assert!(error.contains(".other.secateur: is not a folder that secateur made"), "{error}");
    fail(generate(&at("other")).arg("--force"), 1);
    assert!(foreign.iter().all(|name| read(&at(name).join("t")) == "mine"));
    assert_eq!(entries(&at(".other.secateur")), ["secateur.json"]);
}

#[test]
#[cfg(unix)]
fn what_a_model_names_is_inside_it() {
    use std::os::unix::fs::symlink;
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let copy = copied(temporary.path());
    let manifest = copy.join("secateur.json");
    let whole = read(&manifest);
    write(&at("secret.txt"), "a secret\nanother\n");
    let secret = at("secret.txt").display().to_string();
    for named in ["../secret.txt", &secret, "prompts/../../secret.txt", ""] {
        for field in ["prompts/held_out.txt", "prompts/calibration.txt"] {
            std::fs::write(&manifest, whole.replace(field, named)).unwrap();
            let error = fail(&mut prune(&copy, &at("out")), 1);
            assert!(error.contains("secateur.json: prompts."), "{error}");
        }
    }
    for clip in ["../../models", "/etc", "../a/b"] {
        std::fs::write(&manifest, whole.replace("../emoji-clip", clip)).unwrap();
        let error = fail(&mut prune(&copy, &at("out")), 1);
        assert!(error.contains("secateur.json: clip: "), "{error}");
    }
    std::fs::write(&manifest, &whole).unwrap();
    // Nor do links lead out: a list is not read, and other files and folders are not copied.
    let list = copy.join("prompts/held_out.txt");
    std::fs::rename(&list, at("list.txt")).unwrap();
    symlink(at("secret.txt"), &list).unwrap();
    let error = fail(secateur().arg("generate").arg(&copy).arg("--out").arg(at("out")), 1);
    assert!(
        error.contains("held_out.txt: is a link that leads out of the model folder"),
        "{error}"
    );
    write(&at("folder/id_rsa"), "key");
    symlink("../folder", copy.join("docs")).unwrap();
    symlink("..", copy.join("loop")).unwrap();
    symlink(".", copy.join("vae/loop")).unwrap();
    symlink(at("secret.txt"), copy.join("notes.txt")).unwrap();
    let mut command = prune(&copy, &at("out"));
    command.arg("--prompts").arg(at("list.txt"));
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    for left_out in ["docs", "loop", "vae/loop", "notes.txt", "prompts/held_out.txt"] {
        assert!(at("out").join(left_out).symlink_metadata().is_err(), "{left_out}");
    }
    // As in the hub's cache.
    let cached = at("models--a/snapshots/0123");
    copy_folder(&model("emoji-mmdit"), &at("plain"));
    std::fs::create_dir_all(cached.parent().unwrap()).unwrap();
    std::fs::create_dir(at("models--a/blobs")).unwrap();
    std::fs::rename(at("plain"), &cached).unwrap();
    for (number, file) in
        ["model_index.json", "prompts/held_out.txt", "tokenizer/vocab.json"].iter().enumerate()
    {
        let blob = at("models--a/blobs").join(number.to_string());
        std::fs::rename(cached.join(file), &blob).unwrap();
        let up = if file.contains('/') { "../../../blobs" } else { "../../blobs" };
        symlink(Path::new(up).join(number.to_string()), cached.join(file)).unwrap();
    }
    succeed(&mut prune(&cached, &at("from-cache")));
    assert!(!at("from-cache/prompts/held_out.txt").is_symlink());
    assert_eq!(read(&at("from-cache/prompts/held_out.txt")), read(&at("list.txt")));
}

#[test]
#[cfg(unix)]
fn pipes_and_folders_are_no_files() {
    let temporary = tempfile::tempdir().unwrap();
    let copy = copied(temporary.path());
    for (file, also) in [
        ("vae/config.json", "a pipe"),
        ("model_index.json", "model_index.json"),
        ("tokenizer/merges.txt", "a pipe"),
        ("transformer/diffusion_pytorch_model.safetensors", "a pipe"),
        ("README.md", "a pipe"),
    ] {
        let path = copy.join(file);
        let kept = std::fs::read(&path).ok();
        let _ = std::fs::remove_file(&path);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let start = Instant::now();
        let error = fail(&mut prune(&copy, &temporary.path().join("out")), 1);
        assert!(error.contains(file) && error.contains(also), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10));
        std::fs::remove_file(&path).unwrap();
        if let Some(kept) = kept {
            std::fs::write(path, kept).unwrap();
        }
    }
    let prompts =
        |path: &str| fail(prune(&copy, &temporary.path().join("out")).args(["--prompts", path]), 1);
    assert!(prompts("/dev/zero").contains("/dev/zero: is a device"));
    let giant = temporary.path().join("giant");
    std::fs::File::create(&giant).unwrap().set_len(1 << 30).unwrap();
    assert!(prompts(&giant.display().to_string()).contains("giant: has more than 12 MiB"));
    assert_eq!(entries(temporary.path()), ["giant", "model"]);
}

/// What a killed run left is checked before it is used: whatever became of it, the model is the
/// same.
#[test]
#[cfg(unix)]
fn damaged_progress_is_made_again() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let run = |name: &str, more: &[&str]| {
        let mut command = prune(&model("emoji-mmdit"), &at(name));
        command.args(["--packages", "4", "--include", "transformer_blocks.[12].*"]).args(more);
        command
    };
    let progress = at(".stopped.secateur/progress");
    let mut child = run("stopped", &[]).stderr(Stdio::null()).spawn().unwrap();
    while !progress.join("package-0002.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    copy_folder(&at(".stopped.secateur"), &at("kept"));
    let weights = |name: &str| {
        std::fs::read(at(name).join("transformer/diffusion_pytorch_model.safetensors")).unwrap()
    };
    succeed(&mut run("whole", &[]));
    let flip = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    let tensors = |package: usize| progress.join(format!("package-000{package}.tensors"));
    let json = |package: usize| progress.join(format!("package-000{package}.json"));
    type Damage<'a> = (&'a str, &'a dyn Fn());
    let damages: [Damage<'_>; 8] = [
        ("package-0000.tensors", &|| flip(&tensors(0))),
        ("package-0001.json", &|| flip(&json(1))),
        ("package-0000.tensors", &|| std::fs::write(tensors(0), b"\x02\0\0\0\0\0\0\0{}").unwrap()),
        ("package-0001.json", &|| {
            std::fs::copy(json(0), json(1)).unwrap();
            std::fs::copy(tensors(0), tensors(1)).unwrap();
        }),
        ("package-0002.tensors", &|| std::fs::remove_file(tensors(2)).unwrap()),
        ("package-0001.json", &|| std::fs::write(json(1), "").unwrap()),
        ("run.json", &|| flip(&progress.join("run.json"))),
        ("", &|| std::fs::remove_file(progress.join("run.json")).unwrap()),
    ];
    for (named, damage) in damages {
        let _ = std::fs::remove_dir_all(at("stopped"));
        let _ = std::fs::remove_dir_all(at(".stopped.secateur"));
        copy_folder(&at("kept"), &at(".stopped.secateur"));
        damage();
        let ended = run("stopped", &["--resume"]).output().unwrap();
        let told = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.success() && told.contains(named), "{named}: {told}");
        assert!(named.is_empty() || told.contains("again"), "{named}: {told}");
        assert!(weights("whole") == weights("stopped"), "{named}: other weights");
    }
    assert_eq!(entries(temporary.path()), ["kept", "stopped", "whole"]);
}

/// Statistics that were carried over are those of other settings than a calibration's, whatever
/// their name.
#[test]
#[cfg(unix)]
fn a_run_goes_on_with_its_own_statistics() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let carried = at("carried").display().to_string();
    succeed(prune(&model("emoji-mmdit"), &at("first")).args(["--carry-statistics", &carried]));
    let run = |more: &[&str]| {
        let mut command = prune(&at("first"), &at("out"));
        command.args(["--sparsity", "0.7"]).args(more);
        command
    };
    let with = ["--statistics", &carried];
    for (begun, resumed) in [(&with[..], &[][..]), (&[], &with)] {
        let mut child = run(begun).stderr(Stdio::null()).spawn().unwrap();
        while !at(".out.secateur/progress/package-0000.json").exists() {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let _ = std::fs::remove_dir_all(at("out"));
        let error = fail(&mut run(&[&["--resume"], resumed].concat()), 1);
        assert!(error.contains("the saved statistics"), "{error}");
        std::fs::remove_dir_all(at(".out.secateur")).unwrap();
    }
}

#[test]
fn damaged_statistics_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let statistics = at("statistics").display().to_string();
    succeed(prune(&model("emoji-mmdit"), &at("first")).args(["--save-statistics", &statistics]));
    for name in ["statistics.safetensors", "statistics.json"] {
        let path = at("statistics").join(name);
        let whole = std::fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        damaged[whole.len() - 40] ^= 4;
        std::fs::write(&path, damaged).unwrap();
        let error = fail(
            prune(&model("emoji-mmdit"), &at("second")).args(["--statistics", &statistics]),
            1,
        );
        assert!(error.contains(name), "{error}");
        std::fs::write(&path, whole).unwrap();
    }
    succeed(prune(&model("emoji-mmdit"), &at("second")).args(["--statistics", &statistics]));
    assert_eq!(entries(temporary.path()), ["first", "second", "statistics"]);
}

/// Names cannot steer the terminal that messages are printed on.
#[test]
#[cfg(unix)]
fn messages_hold_no_control_characters() {
    let temporary = tempfile::tempdir().unwrap();
    let name = "a\x1b]0;title\x07\nb";
    let mut command = secateur();
    command
        .arg("generate")
        .arg(temporary.path().join(name))
        .arg("--out")
        .arg(temporary.path().join("out"));
    let error = fail(&mut command, 2);
    assert!(error.contains("a\\u{1b}]0;title\\u{7}\\nb"), "{error:?}");
    assert!(error.trim_end().chars().all(|c| !c.is_control()), "{error:?}");
}
