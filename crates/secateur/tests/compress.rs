//! Recipes through the binary: several methods on one model, with one report, and runs that go on.

mod common;
#[path = "../../secateur-models/tests/common/copy.rs"]
mod copy;
use common::{entries, fail, model, secateur, succeed};
use copy::copy_folder;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

const RECIPE: &str = "\
steps = 6
samples = 4
report-samples = 2

[[method]]
name = 'slim'
budget = 0.05
allocation = 'uniform'

[[method]]
name = 'prune'
pattern = '2:4'
samples = 3

[[method]]
name = 'skip'
speedup = 2
iterations = 3
exchanges = 4
";

fn compress(recipe: &Path, out: &Path, options: &[&str]) -> Command {
    let mut command = secateur();
    command
        .arg("compress")
        .arg(model("emoji-dit"))
        .arg("--recipe")
        .arg(recipe)
        .arg("--out")
        .arg(out)
        .args(options);
    command
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn one_report_of_all_methods() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    std::fs::write(at("recipe.toml"), RECIPE).unwrap();
    let planned =
        succeed(&mut compress(&at("recipe.toml"), &at("small"), &["--dry-run", "--seed", "3"]));
    assert_eq!(commands(&planned).len(), 3, "{planned}");
    assert!(
        commands(&planned)
            .iter()
            .all(|line| line.contains("--steps=6") && line.contains("--seed=3")),
        "{planned}"
    );
    assert!(
        planned.contains("5 % of the parameters") && planned.contains("2:4 by obs"),
        "{planned}"
    );
    assert_eq!(entries(temporary.path()), ["recipe.toml"]);

    let report =
        json(&succeed(&mut compress(&at("recipe.toml"), &at("small"), &["--quiet", "--json"])));
    assert_eq!(entries(temporary.path()), ["recipe.toml", "small"]);
    assert_eq!(report["title"], "emoji-dit, slim, then prune, then skip");
    let models = &report["models"];
    let figure = |model: usize, name: &str| models[model][name].as_u64().unwrap();
    assert!(figure(1, "parameters") < figure(0, "parameters"));
    assert!(figure(1, "zeros") > figure(1, "parameters") / 6);
    assert!(2 * figure(1, "macs") < figure(0, "macs"));
    assert!(
        !report["layers"].as_array().unwrap().is_empty()
            && !report["groups"].as_array().unwrap().is_empty()
    );
    assert_eq!(report["skipping"]["computed"].as_array().unwrap().len(), 6);
    assert_eq!(report["comparison"]["prompts"].as_array().unwrap().len(), 2);
    let stages: Vec<&str> =
        report["stages"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert!(
        stages.contains(&"1, slim: calibrate") && stages.contains(&"3, skip: learn"),
        "{stages:?}"
    );
    let page = std::fs::read_to_string(at("small/report.html")).unwrap();
    assert!(page.contains("What is computed") && page.contains("then prune"));
    // It is a model as any other.
    let generate = ["generate", "--samples", "1", "--quiet", "--out"];
    succeed(secateur().args(generate).arg(at("pictures")).arg(at("small")));
}

/// What a dry run says of the commands.
fn commands(planned: &str) -> Vec<&str> {
    planned.lines().filter(|line| line.starts_with("secateur ")).collect()
}

/// Ctrl-C once something is there, and what was told.
#[cfg(target_os = "linux")]
fn stop(mut command: Command, once: &Path) -> String {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    while !once.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be stopped");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let ended = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(130), "{told}");
    told
}

#[test]
#[cfg(target_os = "linux")]
fn a_recipe_goes_on_where_it_stopped() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let write = |name: &str, text: &str| std::fs::write(at(name), text).unwrap();
    let method =
        |name: &str| format!("[[method]]\nname = 'prune'\nprompts = '{}'\n", at(name).display());
    let recipe = format!(
        "steps = 3\nreport-samples = 0\n{}include = 'transformer_blocks.0.*'\n{}pattern = '2:4'\n",
        method("first.txt"),
        method("labels.txt")
    );
    write("first.txt", "1\n2\n");
    write("recipe.toml", &recipe);
    let run = |options: &[&str]| compress(&at("recipe.toml"), &at("small"), options);
    let progress = at(".small.secateur/progress");
    // Whatever cannot be is known at once.
    for (recipe, labels, code, words) in [
        (
            recipe.replacen("name = 'prune'", "name = 'prune'\nsparsity = 2", 1),
            "1\n",
            2,
            "sparsity 2",
        ),
        (recipe.clone(), "no such label\n", 2, "no such label"),
        (format!("{recipe}include = 'nothing'\n"), "1\n", 2, "no layer to prune is left"),
        (format!("{recipe}[[method]]\nname = 'skip'\nkeep = 0.01\n"), "1\n", 2, "cannot be kept"),
        (format!("{recipe}[[method]]\nname = 'slim'\nbudget = 0.9\n"), "1\n", 2, "cannot go"),
    ] {
        write("recipe.toml", &recipe);
        write("labels.txt", labels);
        for more in [&[][..], &["--dry-run"]] {
            let error = fail(&mut run(more), code);
            assert!(error.contains(words) && !error.contains("method 1 of"), "{error}");
        }
        assert_eq!(entries(temporary.path()), ["first.txt", "labels.txt", "recipe.toml"]);
    }
    let (many, few) = ("1\n".repeat(2000), "1\n2\n");
    write("recipe.toml", &recipe);
    write("labels.txt", &many);
    let error = fail(&mut run(&["--resume"]), 1);
    assert!(error.contains("nothing to resume"), "{error}");
    let told = stop(run(&[]), &progress.join("1-prune.json"));
    assert!(told.contains("1 of 2 methods are finished: --resume"), "{told}");
    assert!(!at("small").exists());
    let error = fail(&mut run(&[]), 1);
    assert!(error.contains("--resume goes on") && error.contains("--force"), "{error}");
    let error = fail(&mut run(&["--resume", "--seed", "9"]), 2);
    assert!(error.contains("of another model, or its first method of other settings"), "{error}");
    write("first.txt", "1\n3\n");
    let error = fail(&mut run(&["--resume"]), 2);
    assert!(error.contains("of other settings or prompts"), "{error}");
    write("first.txt", "1\n2\n");
    // Nor is what another run has made: here of fewer samples, under the same name.
    let of_other = at(".other.secateur/progress");
    stop(
        compress(&at("recipe.toml"), &at("other"), &["--samples", "1"]),
        &of_other.join("1-prune.json"),
    );
    for part in ["1-prune", "1-prune.json"] {
        std::fs::rename(progress.join(part), at(part)).unwrap();
        std::fs::rename(of_other.join(part), progress.join(part)).unwrap();
    }
    let error = fail(&mut run(&["--resume"]), 2);
    assert!(error.contains("of other settings or prompts"), "{error}");
    for part in ["1-prune", "1-prune.json"] {
        std::fs::remove_dir_all(progress.join(part))
            .or_else(|_| std::fs::remove_file(progress.join(part)))
            .unwrap();
        std::fs::rename(at(part), progress.join(part)).unwrap();
    }
    std::fs::remove_dir_all(at(".other.secateur")).unwrap();

    // Nor is another model, be it in what is only copied.
    let mut other = secateur();
    copy_folder(&model("emoji-dit"), &at("model"));
    let config = std::fs::read_to_string(at("model/vae/config.json")).unwrap();
    std::fs::write(at("model/vae/config.json"), format!("{config} ")).unwrap();
    other
        .arg("compress")
        .arg(at("model"))
        .arg("--recipe")
        .arg(at("recipe.toml"))
        .arg("--out")
        .arg(at("small"));
    let error = fail(other.arg("--resume"), 2);
    assert!(error.contains("of another model"), "{error}");
    std::fs::remove_dir_all(at("model")).unwrap();

    // A method that was mended is run, and the one before it is not run again.
    write("labels.txt", few);
    let output = run(&["--resume"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("method 2 of 2") && !told.contains("method 1 of 2"), "{told}");
    assert_eq!(entries(temporary.path()), ["first.txt", "labels.txt", "recipe.toml", "small"]);
    let resumed =
        std::fs::read(at("small/transformer/diffusion_pytorch_model.safetensors")).unwrap();
    succeed(&mut run(&["--force", "--quiet"]));
    assert!(
        resumed
            == std::fs::read(at("small/transformer/diffusion_pytorch_model.safetensors")).unwrap()
    );

    // Another recipe in its place leaves nothing of it behind.
    write("labels.txt", &many);
    stop(run(&["--force"]), &progress.join("1-prune.json"));
    write(
        "recipe.toml",
        "steps = 2\nsamples = 2\nreport-samples = 0\n[[method]]\nname = 'slim'\nbudget = \
         0.05\nallocation = 'uniform'\n",
    );
    succeed(&mut run(&["--force", "--quiet"]));
    assert_eq!(entries(temporary.path()), ["first.txt", "labels.txt", "recipe.toml", "small"]);
}

/// Ctrl-C in the middle of a method, and when one has just ended.
#[test]
#[cfg(target_os = "linux")]
fn a_stopped_recipe_goes_on() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let recipe = "steps = 5\nsamples = 2\nreport-samples = 0\n[[method]]\nname = 'skip'\nspeedup = \
        2\niterations = 6\nexchanges = 4\n[[method]]\nname = 'prune'\npattern = '2:4'\ninclude = \
        'transformer_blocks.0.*'\n";
    std::fs::write(at("recipe.toml"), recipe).unwrap();
    let run = |out: &str, options: &[&str]| compress(&at("recipe.toml"), &at(out), options);
    succeed(&mut run("whole", &["--quiet"]));
    for (stage, finished) in
        [("plain rules", None), ("select", None), ("save", Some("1 of 2 methods are finished"))]
    {
        let mut child = run("stopped", &["--force"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(told.any(|line| line.starts_with(stage)), "{stage} was not told");
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        let told = told.collect::<Vec<_>>().join("\n");
        assert_eq!(child.wait().unwrap().code(), Some(130), "{stage}: {told}");
        assert!(told.contains("--resume goes on"), "{stage}: {told}");
        assert!(finished.is_none_or(|finished| told.contains(finished)), "{stage}: {told}");
        assert!(!at("stopped").exists());
        succeed(&mut run("stopped", &["--resume", "--quiet"]));
        assert_eq!(entries(temporary.path()), ["recipe.toml", "stopped", "whole"]);
        for file in ["reuse.json", "transformer/diffusion_pytorch_model.safetensors"] {
            let read = |name: &str| std::fs::read(at(name).join(file)).unwrap();
            assert!(read("whole") == read("stopped"), "{stage}: {file}");
        }
        std::fs::remove_dir_all(at("stopped")).unwrap();
    }
}

/// The report's prompts are none that a method learns from, and what is read is not replaced.
#[test]
fn what_a_recipe_reads() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    std::fs::create_dir(at("data")).unwrap();
    let (recipe, own) =
        (at("data/recipe.toml"), model("emoji-mmdit").join("prompts/calibration.txt"));
    std::fs::write(
        &recipe,
        "steps = 2\nsamples = 2\n[[method]]\nname = 'slim'\nallocation = \
         'uniform'\n[[method]]\nname = 'prune'\nsamples = 3\n",
    )
    .unwrap();
    let prompts: Vec<String> =
        std::fs::read_to_string(own).unwrap().lines().take(5).map(str::to_owned).collect();
    std::fs::write(at("data/report.txt"), prompts.join("\n")).unwrap();
    let run = |out: &str| {
        let mut command = secateur();
        command
            .arg("compress")
            .arg(model("emoji-mmdit"))
            .arg("--recipe")
            .arg(&recipe)
            .arg("--out")
            .arg(at(out));
        command
            .args(["--report-samples", "9", "--force", "--quiet", "--json", "--report-prompts"])
            .arg(at("data/report.txt"));
        command
    };
    let error = fail(&mut run("data"), 1);
    assert!(error.contains("overlap"), "{error}");
    assert_eq!(entries(&at("data")), ["recipe.toml", "report.txt"]);
    let report = json(&succeed(&mut run("small")));
    let drawn = report["comparison"]["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| pair["prompt"].as_str().unwrap());
    assert!(drawn.eq(prompts[3..].iter()));
    assert!(
        report["notes"].to_string().contains("3 report prompts are calibration prompts"),
        "{}",
        report["notes"]
    );
}

#[test]
fn methods_that_would_calibrate_alike_share_a_calibration() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let recipe = "steps = 2\nreport-samples = 0\n[[method]]\nname = 'slim'\nbudget = \
        0.05\nallocation = 'uniform'\n[[method]]\nname = 'prune'\n\
                  pattern = '2:4'\n[[method]]\nname = 'prune'\nsamples = 3\n";
    std::fs::write(at("recipe.toml"), recipe).unwrap();
    let planned = succeed(&mut compress(&at("recipe.toml"), &at("small"), &["--dry-run"]));
    let [slim, first, second] = commands(&planned)[..] else { panic!("{planned}") };
    for (command, option) in [(slim, "--carry-statistics="), (first, "--statistics=")] {
        let words: Vec<&str> = command.split(' ').collect();
        let statistics = words.iter().find(|word| word.starts_with(option)).unwrap();
        assert!(statistics.ends_with(".small.secateur/progress/1-slim.statistics"), "{command}");
        assert!(words.contains(&"--samples=200"), "{command}");
    }
    assert!(second.contains("--samples=3") && !second.contains("statistics"), "{second}");

    // What is shared is what the commands do by themselves, a run that was stopped in between
    // included.
    let few = ["--samples", "4", "--force", "--quiet", "--json"];
    let report = json(&succeed(&mut compress(&at("recipe.toml"), &at("small"), &few)));
    assert_eq!(entries(temporary.path()), ["recipe.toml", "small"]);
    let stages: Vec<&str> =
        report["stages"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert!(
        stages.contains(&"1, slim: calibrate") && stages.contains(&"3, prune: calibrate"),
        "{stages:?}"
    );
    assert!(!stages.contains(&"2, prune: calibrate"), "{stages:?}");
    let by_hand = |command: &str, options: &[&str], from: &Path, out: &str| {
        let common = ["--steps=2", "--samples=4", "--report-samples=0", "--quiet"];
        succeed(
            secateur().arg(command).arg(from).args(common).args(options).arg("--out").arg(at(out)),
        );
    };
    let statistics = at("carried");
    let carry = format!("--carry-statistics={}", statistics.display());
    by_hand("slim", &["--budget=0.05", "--allocation=uniform", &carry], &model("emoji-dit"), "a");
    let error = secateur()
        .arg("prune")
        .arg(model("emoji-dit"))
        .arg("--statistics")
        .arg(&statistics)
        .arg("--out")
        .arg(at("b"))
        .args(["--steps=2", "--samples=4", "--report-samples=0"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&error.stderr).contains("made with other settings: model"),
        "{error:?}"
    );
    by_hand(
        "prune",
        &["--pattern=2:4", &format!("--statistics={}", statistics.display())],
        &at("a"),
        "b",
    );
    by_hand("prune", &["--samples=3"], &at("b"), "c");
    let weights = |name: &str| {
        std::fs::read(at(name).join("transformer/diffusion_pytorch_model.safetensors")).unwrap()
    };
    assert!(weights("small") == weights("c"));
}
