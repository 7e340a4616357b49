//! Damaged files: every command that reads one ends in order and says which file it is.
//!
//! `SECATEUR_MUTATIONS=N` sets how many are tried, `SECATEUR_SEED` which; `SECATEUR_MUTATION=I`
//! tries the I-th alone. What failed before is tried first: see `mutations/README.md`.

#![cfg(target_os = "linux")]

#[path = "common/damage.rs"]
mod damage;
#[path = "common/harness/mod.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod harness;

use damage::damage;
use harness::cases::{each, number, row, tell};
use harness::process::Ended;
use harness::random::Random;
use harness::shim::{Disturbance, Shim};
use harness::tiny::{Tiny, UnitKind};
use harness::tree::Tree;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Options of a run that calibrates, and of one that uses its statistics.
const CALIBRATION: [&str; 6] = [
    "--prompts=prompts.txt",
    "--steps=1",
    "--batch=2",
    "--report-samples=0",
    "--packages=1",
    "--quiet",
];

/// What reads the damaged file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Inspect,
    Zeros,
    Blocks,
    Memory,
    Generate,
    /// With the prompts of the model itself.
    Own,
    Prune,
    Slim,
    Export,
    Compare,
    Recipe,
    Convert,
    Statistics,
    Resume,
}

impl Reader {
    const ALL: [Self; 14] = [
        Self::Inspect,
        Self::Zeros,
        Self::Blocks,
        Self::Memory,
        Self::Generate,
        Self::Own,
        Self::Prune,
        Self::Slim,
        Self::Export,
        Self::Compare,
        Self::Recipe,
        Self::Convert,
        Self::Statistics,
        Self::Resume,
    ];

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Its arguments, on that model.
    fn arguments(self, model: &str) -> Vec<&str> {
        let of_model =
            |arguments: &[&'static str]| [&arguments[..1], &[model], &arguments[1..]].concat();
        match self {
            Self::Inspect => of_model(&["inspect", "--quiet"]),
            Self::Zeros => of_model(&["inspect", "--zeros", "--quiet"]),
            Self::Blocks => of_model(&["inspect", "--tree", "--quiet"]),
            Self::Memory => of_model(&["inspect", "--memory", "--quiet"]),
            Self::Generate => of_model(&[
                "generate",
                "--prompts=prompts.txt",
                "--steps=1",
                "--adapt",
                "--out=out",
                "--quiet",
            ]),
            Self::Own => {
                of_model(&["generate", "--samples=1", "--steps=1", "--out=out", "--quiet"])
            }
            Self::Prune => [&of_model(&["prune", "--out=out"]), CALIBRATION.as_slice()].concat(),
            Self::Slim => [&of_model(&["slim", "--out=out"]), CALIBRATION.as_slice()].concat(),
            Self::Export => of_model(&["export", "--densify", "--out=out", "--quiet"]),
            Self::Compare => {
                vec![
                    "compare",
                    "tiny-model",
                    model,
                    "--prompts=prompts.txt",
                    "--steps=1",
                    "--adapt",
                    "--out=out",
                    "--quiet",
                ]
            }
            Self::Recipe => of_model(&[
                "compress",
                "--recipe=recipe.toml",
                "--prompts=prompts.txt",
                "--dry-run",
                "--quiet",
            ]),
            Self::Convert => {
                vec![
                    "convert",
                    "single-file.safetensors",
                    "--like=like-this",
                    "--out=out",
                    "--quiet",
                ]
            }
            Self::Statistics => [
                &of_model(&["prune", "--statistics=statistics", "--out=out"]),
                CALIBRATION.as_slice(),
            ]
            .concat(),
            Self::Resume => vec![],
        }
    }
}

/// Files, and what reads them.
struct Group {
    files: Vec<PathBuf>,
    readers: &'static [Reader],
}

/// All inputs, and the state of a run of prune that was stopped.
struct Inputs {
    tiny: Tiny,
    whole: Tree,
    groups: Vec<Group>,
    /// What the run that was stopped gives in the end.
    resumed: Tree,
    /// Runs that ended with an error, as they may.
    refused: AtomicUsize,
}

/// A file that is damaged.
struct Case {
    name: String,
    reader: Reader,
    file: PathBuf,
    bytes: Vec<u8>,
}

impl Inputs {
    fn new() -> Self {
        let tiny = Tiny::new();
        let at = |name: &str| tiny.at(name);
        let run = |command: &mut Command| {
            let ended = Ended::of(command);
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        };
        run(&mut tiny.command(UnitKind::Skip, &at("skipping-model")));
        let mut saving = Command::new(env!("CARGO_BIN_EXE_secateur"));
        saving
            .current_dir(at(""))
            .args("prune tiny-model --save-statistics=statistics --out=with-statistics".split(' '));
        run(saving.args(CALIBRATION));
        std::fs::remove_dir_all(at("with-statistics")).unwrap();
        let resumed = stopped_run(&tiny);
        let whole = Tree::read(&at("")).unwrap();
        let all: Vec<PathBuf> = whole.files().map(|(path, _)| path.to_owned()).collect();
        let group = |wanted: &dyn Fn(&Path, &str) -> bool, readers: &'static [Reader]| {
            let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
            let files: Vec<PathBuf> = all
                .iter()
                .filter(|path| wanted(path.as_path(), &name(path.as_path())))
                .cloned()
                .collect();
            assert!(!files.is_empty(), "no files for {readers:?}");
            Group { files, readers }
        };
        use Reader::*;
        let in_model = |path: &Path| path.starts_with("tiny-model");
        let tokenizer =
            |path: &Path| path.iter().any(|step| step.to_string_lossy().starts_with("tokenizer"));
        let groups = vec![
            group(
                &|path, name| in_model(path) && !tokenizer(path) && name.ends_with(".json"),
                &[Inspect, Blocks, Memory, Generate, Generate, Prune, Slim],
            ),
            group(
                &|path, name| in_model(path) && name.ends_with(".safetensors"),
                &[Inspect, Zeros, Generate, Prune],
            ),
            group(&|path, _| in_model(path) && tokenizer(path), &[Generate]),
            group(
                &|path, _| path.ends_with("smaller-model/secateur.json"),
                &[Inspect, Generate, Export, Compare],
            ),
            group(
                &|path, name| {
                    path.starts_with("skipping-model")
                        && matches!(name, "reuse.json" | "secateur.json")
                },
                &[Inspect, Generate, Compare],
            ),
            group(
                &|path, name| path == Path::new(name) && name.ends_with(".txt"),
                &[Generate, Prune],
            ),
            group(&|path, _| path == Path::new("recipe.toml"), &[Recipe]),
            group(&|path, _| path == Path::new("single-file.safetensors"), &[Convert, Inspect]),
            group(&|path, _| path.starts_with("like-this"), &[Convert]),
            group(&|path, _| path.starts_with("statistics"), &[Statistics]),
            group(&|path, _| path.starts_with("stopped"), &[Resume]),
        ];
        Self { tiny, whole, groups, resumed, refused: AtomicUsize::new(0) }
    }

    fn case(&self, seed: u64, index: u64) -> Case {
        let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(index));
        let group = random.pick(&self.groups);
        let (file, reader) = (random.pick(&group.files).clone(), *random.pick(group.readers));
        let mut bytes = self.bytes(&file).to_vec();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        for _ in 0..1 + random.below(8) / 6 {
            bytes = damage(&name, &bytes, &mut random);
        }
        Case {
            name: format!("SECATEUR_SEED={seed} SECATEUR_MUTATION={index}"),
            reader,
            file,
            bytes,
        }
    }

    fn bytes(&self, wanted: &Path) -> &[u8] {
        self.whole
            .files()
            .find(|(path, _)| *path == wanted)
            .unwrap_or_else(|| panic!("no {}", wanted.display()))
            .1
    }

    fn survives(&self, case: &Case) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("inputs");
        self.link(&work);
        let damaged = work.join(&case.file);
        std::fs::remove_file(&damaged).unwrap();
        std::fs::write(&damaged, &case.bytes).unwrap();
        let before = Tree::read(&work).unwrap();
        let mut command = match case.reader {
            Reader::Resume => {
                let mut command = self.tiny.command(UnitKind::Prune, &work.join("stopped/out"));
                command.current_dir(&work).arg("--resume");
                command
            }
            reader => {
                let first = case.file.iter().next().unwrap().to_string_lossy();
                // What is no model is read beside the first one, or instead of one.
                let model = match &*first {
                    "smaller-model" | "skipping-model" | "single-file.safetensors" => &*first,
                    _ => "tiny-model",
                };
                let mut command = Command::new(env!("CARGO_BIN_EXE_secateur"));
                command.current_dir(&work).args(reader.arguments(model)).arg("--threads=1");
                command
            }
        };
        let ended = Ended::of(&mut command);
        let out =
            if case.reader == Reader::Resume { work.join("stopped/out") } else { work.join("out") };
        let result = self.judge(case, &ended, &work, &out, &before);
        result.map_err(|problem| ended.problem(format!("{}\n{problem}", self.keep(case))))
    }

    fn judge(
        &self,
        case: &Case,
        ended: &Ended,
        work: &Path,
        out: &Path,
        before: &Tree,
    ) -> Result<(), String> {
        if let Some(over) = &ended.over {
            return Err(over.clone());
        }
        if ended.stderr.contains("panicked") {
            return Err("panicked".into());
        }
        let Some(code @ 0..=2) = ended.code else {
            return Err("an exit code that is none of 0, 1 and 2".into());
        };
        if let Some(control) =
            ended.stderr.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t'))
        {
            return Err(format!("the message has the control character {control:?}"));
        }
        let made = Tree::read(out);
        if code == 0 {
            if case.reader == Reader::Resume {
                let difference = made.unwrap_or_default().difference_of_output(&self.resumed);
                return difference.map_or(Ok(()), |difference| {
                    Err(format!("it goes on to something else: {difference}"))
                });
            }
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            let folder = case.file.parent().and_then(Path::file_name);
            // A conversion names the two things that do not fit each other.
            let like = case.file.iter().next().filter(|_| case.reader == Reader::Convert);
            let names = [case.file.file_name(), folder, like]
                .map(|name| name.unwrap_or_default().to_string_lossy());
            if !names.iter().any(|name| !name.is_empty() && ended.stderr.contains(&**name)) {
                return Err(format!(
                    "the message names neither {} nor its folder",
                    case.file.display()
                ));
            }
            if made.is_some() {
                return Err("it failed, and there is an output".into());
            }
        }
        // All but the output, and what a run that goes on uses.
        let wanted = |name: &std::ffi::OsStr| name != "out" && name != "stopped";
        let left = Tree::read_some(work, wanted).difference(&before.clone().only(wanted));
        left.map_or(Ok(()), |difference| Err(format!("something changed: {difference}")))
    }

    /// The inputs as links to one copy; none of them is written to.
    fn link(&self, work: &Path) {
        let source = self.tiny.at("");
        let link = |path: &Path| {
            let target = work.join(path);
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            // What a run goes on with it may write to.
            let made = match path.starts_with("stopped") {
                true => std::fs::copy(source.join(path), target).map(|_| ()),
                false => std::fs::hard_link(source.join(path), target),
            };
            made.unwrap();
        };
        self.whole.files().for_each(|(path, _)| link(path));
    }

    /// Writes a case down so that it can be tried again, and tells where.
    fn keep(&self, case: &Case) -> String {
        let name: String =
            case.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let folder =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutations").join(name.to_lowercase());
        std::fs::create_dir_all(&folder).unwrap();
        let damaged = folder.join(case.file.file_name().unwrap());
        std::fs::write(damaged, &case.bytes).unwrap();
        let (old, new) = (self.bytes(&case.file), case.bytes.as_slice());
        let start = old.iter().zip(new).take_while(|(a, b)| a == b).count();
        let end = old[start..]
            .iter()
            .rev()
            .zip(new[start..].iter().rev())
            .take_while(|(a, b)| a == b)
            .count();
        let insert = &new[start..new.len() - end];
        let mut entry = serde_json::json!({
            "reader": case.reader.name(),
            "file": case.file,
            "at": start,
            "remove": old.len() - end - start,
        });
        match std::str::from_utf8(insert) {
            Ok(text) => entry["insert"] = text.into(),
            Err(_) => entry["insert_bytes"] = insert.into(),
        }
        std::fs::write(
            folder.join("case.json"),
            serde_json::to_string_pretty(&entry).unwrap() + "\n",
        )
        .unwrap();
        format!("{} ({}): {}", case.name, case.file.display(), folder.display())
    }

    /// A case of the corpus.
    fn recorded(&self, path: &Path) -> Case {
        let entry: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let text = |key: &str| entry[key].as_str().map(str::to_owned);
        let number = |key: &str| entry[key].as_u64().unwrap_or(0) as usize;
        let file = PathBuf::from(text("file").expect("a file"));
        let reader = text("reader").expect("a reader");
        let reader =
            Reader::ALL.into_iter().find(|known| known.name() == reader).expect("a known reader");
        let mut bytes = self.bytes(&file).to_vec();
        let insert = match (text("insert"), &entry["insert_bytes"]) {
            (Some(text), _) => text.into_bytes(),
            (None, bytes) => serde_json::from_value(bytes.clone()).expect("what to insert"),
        };
        let insert = insert.repeat(entry["times"].as_u64().unwrap_or(1) as usize);
        let place = match text("find") {
            Some(find) => {
                let found = bytes.windows(find.len()).position(|window| window == find.as_bytes());
                let at = found.unwrap_or_else(|| {
                    panic!("{}: {find} is not in {}", path.display(), file.display())
                });
                at..at + find.len()
            }
            None => {
                let at = number("at").min(bytes.len());
                at..(at + number("remove")).min(bytes.len())
            }
        };
        bytes.splice(place, insert);
        Case { name: path.file_stem().unwrap().to_string_lossy().into_owned(), reader, file, bytes }
    }
}

/// Stops a run of prune in `stopped` when all its packages are done, and tells what it gives when
/// it goes on.
fn stopped_run(tiny: &Tiny) -> Tree {
    let shim = Shim::new();
    let whole = tempfile::tempdir().unwrap();
    let operations = shim.operations(&mut tiny.command(UnitKind::Prune, &whole.path().join("out")));
    let saving = operations.iter().position(|operation| operation.ends_with("/model_index.json"));
    let saving = saving.expect("model_index.json is written") + 1;
    std::fs::create_dir(tiny.at("stopped")).unwrap();
    let mut command = tiny.command(UnitKind::Prune, &tiny.at("stopped/out"));
    shim.disturb(&mut command, saving, Disturbance::Signal(2));
    let ended = Ended::of(&mut command);
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    assert!(!tiny.at("stopped/out").exists(), "it ended before it was stopped");
    Tree::read(&whole.path().join("out")).unwrap()
}

#[test]
fn damaged_files() {
    let inputs = Inputs::new();
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mutations");
    let files = std::fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|ending| ending == "json")).collect();
    files.sort();
    let recorded: Vec<Case> = files.iter().map(|file| inputs.recorded(file)).collect();
    let failures = each(&recorded, |case| inputs.survives(case));
    let before = tell("damaged before", recorded.len(), &failures);

    inputs.refused.store(0, Ordering::Relaxed);
    let seed = number("SECATEUR_SEED").unwrap_or(1);
    let indices: Vec<u64> = match number("SECATEUR_MUTATION") {
        Some(index) => vec![index],
        None => (0..number("SECATEUR_MUTATIONS").unwrap_or(400)).collect(),
    };
    let failures = each(&indices, |index| inputs.survives(&inputs.case(seed, *index)));
    let refused = inputs.refused.load(Ordering::Relaxed);
    let random = tell(
        &format!("damaged at random, seed {seed} ({refused} refused)"),
        indices.len(),
        &failures,
    );
    let difference = Tree::read(&inputs.tiny.at("")).unwrap().difference(&inputs.whole);
    assert!(difference.is_none(), "an input changed: {difference:?}");
    row(&format!("seed {seed}"), &[before, random]);
}
