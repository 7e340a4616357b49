//! Output folders. One appears under its name when it is complete, and replaces only what may be
//! replaced.

mod options;
mod parents;
mod place;
mod progress;
mod published;

pub use options::OutputOptions;

use crate::error::{Error, Result, invalid, shown};
use crate::files::digest::digest_of_file;
use crate::files::names::work_name;
use crate::files::recognise::{Inputs, RECORD, check_replaceable, foreign, nearest, write_record};
use crate::files::rename::{exchange, rename_new};
use crate::files::sealed::{read_sealed, write_sealed};
use crate::files::work::WorkFolder;
use crate::files::write::{sync_folder, sync_folders};
use parents::Parents;
pub use place::free_space;
use place::{EXISTS, checked, refuse_existing, split};
use progress::{clear_misplaced, has_progress, progress_names};
use published::{Identity, Published, identity};
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// An output folder, which appears under its name only when it is complete.
///
/// All work on it is in one hidden folder beside it, `.NAME.secateur`. A lock keeps other processes
/// from working on the same output. When this is dropped, the hidden folder is removed, unless
/// [`OutputFolder::progress`] holds work that a later run can resume.
pub struct OutputFolder<'a> {
    target: PathBuf,
    options: OutputOptions<'a>,
    inputs: Inputs,
    /// `None` once the output is finished.
    work: Option<WorkFolder>,
    /// The output of the resumed run at the time when it was stopped. It may be replaced.
    own: Option<Identity>,
    /// An output that an earlier run finished, before it was killed while cleaning up.
    finished: Option<Published>,
    /// Everything that the output depends on, if a run can resume it.
    request: Option<String>,
    /// Folders above the target that were made for it.
    parents: Parents,
}

/// The folder that is filled. After an exchange it holds the replaced folder.
const CONTENT: &str = "content";
/// The replaced folder while the new one moves to its place, on systems that cannot exchange
/// folders.
const REPLACED: &str = "replaced";
/// A folder that was replaced and is being removed.
const DISCARDED: &str = "discarded";
/// A complete folder that could not move to its place.
const COMPLETE: &str = "complete";
/// The identity of the folder that is about to appear.
const PUBLISHED: &str = "published.json";
/// The finished parts of a run.
const PROGRESS: &str = "progress";

impl<'a> OutputFolder<'a> {
    /// Prepares `target` before any long work, so that problems are found early. `inputs` are the
    /// files and folders that are read. They are never replaced, nor is anything that they link to.
    ///
    /// # Errors
    /// If the folder exists and may not be replaced, holds or lies in an input, is being written by
    /// another process, has an unfinished run, or cannot be written.
    pub fn create(target: &Path, options: OutputOptions<'a>, inputs: &[&Path]) -> Result<Self> {
        let inputs = checked(target, options, inputs)?;
        let (parent, name) = split(target)?;
        let parents = Parents::create(parent)?;
        let parent = parent.canonicalize().map_err(Error::io(parent))?;
        let target = parent.join(name);
        let work = WorkFolder::open(&parent, name)?;
        let was_there = work.was_there;
        let mut output = Self {
            target,
            options,
            inputs,
            work: Some(work),
            own: None,
            finished: None,
            request: None,
            parents,
        };
        let prepared = output.prepare(was_there);
        if prepared.is_err() && was_there && output.holds_work() {
            // It stays as it was found.
            output.work = None;
        }
        prepared.map(|()| output)
    }

    /// Checks what [`OutputFolder::create`] checks, and makes nothing. Only `create` finds another
    /// process at work, and an unfinished run.
    ///
    /// # Errors
    /// As [`OutputFolder::create`].
    pub fn check(target: &Path, options: OutputOptions<'_>, inputs: &[&Path]) -> Result<()> {
        checked(target, options, inputs).map(drop)
    }

    /// The folder to write into.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.at(CONTENT)
    }

    /// The folder that will appear.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// A folder for work that is worth keeping until the output is complete. A resumed run finds it
    /// again. Anything in it besides a file `run.json` is progress, and stays when the run is
    /// stopped.
    #[must_use]
    pub fn progress(&self) -> PathBuf {
        self.at(PROGRESS)
    }

    /// The path of [`OutputFolder::progress`] for an output in the making.
    #[must_use]
    pub fn progress_of(target: &Path) -> PathBuf {
        target.with_file_name(work_name(target.file_name().unwrap_or_default())).join(PROGRESS)
    }

    /// Checks by its file names that the progress belongs to this command. That of another command
    /// stays as it is.
    ///
    /// # Errors
    /// If `is_own` is false for a name.
    pub fn check_progress(&self, is_own: impl Fn(&str) -> bool) -> Result<()> {
        match progress_names(&self.progress()).find(|name| !is_own(name)) {
            None => Ok(()),
            Some(_) => {
                invalid!(
                    &self.target,
                    "the unfinished run for it is of another command: resume that, or \
                    `force` begins anew"
                )
            }
        }
    }

    /// Checks that the file system of an output has room for `bytes` bytes.
    ///
    /// # Errors
    /// If it has not. The error gives both numbers of bytes.
    pub fn check_space(target: &Path, bytes: u64) -> Result<()> {
        let absolute = std::path::absolute(target).map_err(Error::io(target))?;
        // The folders above it may have to be made.
        match absolute.parent().map(nearest).and_then(free_space) {
            Some(free) if free < bytes => {
                let problem = format!(
                    "the model has files of {bytes} bytes to copy, and {free} are free here"
                );
                Err(Error::invalid(target, problem))
            }
            _ => Ok(()),
        }
    }

    /// Whether a resumed run was complete: the output is there, and nothing is left to do.
    /// `request` is everything that the output depends on.
    ///
    /// # Errors
    /// If the output belongs to another request, or was changed since. It stays as it is.
    pub fn is_finished(&mut self, request: &str) -> Result<bool> {
        self.request = Some(request.to_owned());
        let Some(finished) = &self.finished else { return Ok(false) };
        let problem = match foreign(&self.target)? {
            _ if finished.request != self.request => {
                "is complete, and of another model or other settings".into()
            }
            _ if digest_of_file(&self.target.join(RECORD), &())? != finished.record => {
                "was replaced since it was complete".into()
            }
            Some(problem) => problem,
            None => return Ok(true),
        };
        // Nothing of it is touched.
        self.work = None;
        invalid!(&self.target, "{problem}: choose another name, or `force` begins anew")
    }

    /// Moves the folder to its name.
    ///
    /// # Errors
    /// If it cannot be renamed, or something else took its name that may not be replaced, and
    /// stays.
    pub fn finish(self) -> Result<()> {
        self.publish(true)
    }

    /// Moves the output so far to its name, and keeps the progress, so that the run can be resumed.
    ///
    /// # Errors
    /// See [`OutputFolder::finish`].
    pub fn finish_for_now(self) -> Result<()> {
        self.publish(false)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.work.as_ref().map_or_else(PathBuf::new, |work| work.path().join(name))
    }

    fn work(&self) -> Result<&WorkFolder> {
        self.work.as_ref().ok_or_else(|| Error::invalid(&self.target, "is finished already"))
    }

    /// Examines the target, and what an earlier run left.
    fn prepare(&mut self, was_there: bool) -> Result<()> {
        let work = self.work()?;
        if !work.is_locked() {
            self.options.observer.say(
                "this file system has no locks: take care that no other run has the same `out`",
            );
        }
        self.inputs.check(work.path())?;
        let published = self.published();
        self.put_back(published.is_some())?;
        let replaced = self.last_published().and_then(|last| last.replaced);
        if replaced.is_some() && replaced == identity(&self.at(CONTENT)) {
            // The two were exchanged, and no more.
            self.discard(CONTENT)?;
        }
        let OutputOptions { replace, resume, .. } = self.options;
        if self.at(COMPLETE).exists() && replace {
            check_replaceable(&self.at(COMPLETE))?;
        }
        if self.at(COMPLETE).exists() && !replace {
            invalid!(
                &self.target,
                "what an earlier run could not put in its place is complete in {}; move it to \
                 where you want it, or `force` throws it away",
                shown(&self.at(COMPLETE))
            );
        }
        let complete = published.as_ref().is_some_and(|published| published.complete);
        if complete && resume {
            self.finished = published;
            return Ok(());
        }
        let progress = !complete && has_progress(&self.progress());
        if resume && !was_there {
            let problem = match self.target.exists() {
                true => "nothing to resume: it is there, and there is no unfinished run for it",
                false => {
                    "nothing to resume: there is no unfinished run for it; leave `resume` away"
                }
            };
            return Err(Error::invalid(&self.target, problem));
        }
        if progress && !resume && !replace {
            invalid!(
                &self.target,
                "a run for it was not finished: `resume` goes on with it, `force` begins anew"
            );
        }
        let own = published.filter(|_| resume).map(|published| published.identity);
        // Before anything of an earlier run goes.
        self.own = own;
        self.replaces()?;
        let work = self.work()?;
        if !resume {
            work.clear()?;
        }
        for name in [CONTENT, COMPLETE, DISCARDED] {
            work.remove_entry(name)?;
        }
        if own.is_none() {
            work.remove_entry(PUBLISHED)?;
        }
        clear_misplaced(&self.progress(), self.options.observer)?;
        for name in [CONTENT, PROGRESS] {
            let path = self.at(name);
            match std::fs::create_dir(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists && is_folder(&path) => {}
                made => made.map_err(Error::io(&path))?,
            }
        }
        Ok(())
    }

    /// The record of the last folder that appeared, or was about to.
    fn last_published(&self) -> Option<Published> {
        read_sealed(&self.at(PUBLISHED)).ok()
    }

    /// The record of the folder at the target, if it appeared there: the last one, or what the same
    /// run came to before.
    fn published(&self) -> Option<Published> {
        let (last, there) = (self.last_published()?, identity(&self.target)?);
        if last.goes_on && last.replaced == Some(there) {
            return Some(Published { identity: there, complete: false, ..last });
        }
        (last.identity == there).then_some(last)
    }

    /// Removes a folder that was replaced, or keeps it where somebody has put something into it.
    fn discard(&self, name: &str) -> Result<()> {
        let path = self.at(name);
        let Err(problem) = check_replaceable(&path) else {
            // What is left of it where that is interrupted is not looked at again.
            let _ = std::fs::rename(&path, self.at(DISCARDED));
            return self
                .work()?
                .remove_entry(DISCARDED)
                .and_then(|()| self.work()?.remove_entry(name));
        };
        let complete = self.at(COMPLETE);
        rename_new(&path, &complete).map_err(Error::io(&complete))?;
        self.options.observer.say(&format!("{problem}; it is now {}", shown(&complete)));
        Ok(())
    }

    /// Puts back what a run had taken away that was killed before the new folder was in place.
    fn put_back(&self, published: bool) -> Result<()> {
        let replaced = self.at(REPLACED);
        if replaced.symlink_metadata().is_err() {
            return Ok(());
        }
        if !is_folder(&replaced) {
            invalid!(replaced, "is not a folder that secateur made: move it away");
        }
        if published {
            return self.discard(REPLACED);
        }
        match rename_new(&replaced, &self.target) {
            Ok(()) => {
                let told = format!(
                    "{}: put back what an interrupted run had taken away",
                    shown(&self.target)
                );
                self.options.observer.say(&told);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                invalid!(
                    &self.target,
                    "what an interrupted run took away is in {}: move it away",
                    shown(&replaced)
                )
            }
            Err(error) => Err(Error::io(&self.target)(error)),
        }
    }

    /// Whether something is at the target that is to be replaced; an error where that may not be.
    fn replaces(&self) -> Result<bool> {
        let own = self.own.is_some() && self.own == identity(&self.target);
        match (self.options.replace || own) && self.target.symlink_metadata().is_ok() {
            true => check_replaceable(&self.target).map(|()| true),
            false => refuse_existing(&self.target).map(|()| false),
        }
    }

    /// Whether the work folder holds what must not be thrown away.
    fn holds_work(&self) -> bool {
        has_progress(&self.progress())
            || [COMPLETE, REPLACED].iter().any(|name| self.at(name).exists())
    }

    fn publish(mut self, complete: bool) -> Result<()> {
        let (content, complete) = (self.path(), complete || !has_progress(&self.progress()));
        self.work()?.check()?;
        if !is_folder(&content) {
            invalid!(&content, "is not the folder that was made here");
        }
        write_record(&content)?;
        sync_folders(&content)?;
        match self.put_in_place(&content, complete) {
            Ok(()) => self.parents.keep(),
            Err(error) => return Err(self.keep(&content, error)),
        }
        // From here on the output is complete, whatever else fails.
        let synced = sync_folder(self.target.parent().unwrap_or(Path::new("/")));
        let kept = [COMPLETE, REPLACED].iter().any(|name| self.at(name).symlink_metadata().is_ok());
        let tidied = match (complete && !kept, self.work.take()) {
            (true, Some(work)) => work.remove(),
            (false, Some(work)) => work.remove_entry(CONTENT),
            (_, None) => Ok(()),
        };
        for error in [synced, tidied].into_iter().filter_map(Result::err) {
            self.options.observer.say(&format!("the output is complete, but: {error}"));
        }
        Ok(())
    }

    /// Records the folder that is about to appear. Returns whether it replaces one at the target.
    fn announce(&mut self, content: &Path, complete: bool) -> Result<bool> {
        // Inputs may be elsewhere by now, and something else at the target.
        self.inputs = self.inputs.again()?;
        self.inputs.check(&self.target)?;
        let replaces = self.replaces()?;
        if let Some(identity) = identity(content) {
            let (request, record) =
                (self.request.clone(), digest_of_file(&content.join(RECORD), &())?);
            let replaced = if replaces { self::identity(&self.target) } else { None };
            let goes_on = replaced.is_some() && replaced == self.own;
            let published = Published { identity, replaced, goes_on, request, record, complete };
            write_sealed(&self.at(PUBLISHED), &published)?;
        }
        Ok(replaces)
    }

    fn put_in_place(&mut self, content: &Path, complete: bool) -> Result<()> {
        let replaces = self.announce(content, complete)?;
        if !replaces {
            return rename_new(content, &self.target).map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => Error::invalid(&self.target, EXISTS),
                _ => Error::io(&self.target)(error),
            });
        }
        let replaced = self.at(REPLACED);
        if exchange(content, &self.target).map_err(Error::io(&self.target))? {
            std::fs::rename(content, &replaced).map_err(Error::io(content)).or_else(|error| {
                self.options.observer.say(&error.to_string());
                Ok::<_, Error>(())
            })?;
        } else {
            std::fs::rename(&self.target, &replaced).map_err(Error::io(&self.target))?;
            if let Err(error) = rename_new(content, &self.target) {
                let back = rename_new(&replaced, &self.target);
                let place = if back.is_ok() { &self.target } else { &replaced };
                invalid!(&self.target, "{error}; what was there is in {}", shown(place));
            }
        }
        // Somebody may have put something into it a moment ago.
        if let Err(error) = self.discard(REPLACED) {
            self.options.observer.say(&error.to_string());
        }
        Ok(())
    }

    /// Keeps a complete folder that could not move to its place, where nothing else is kept to make
    /// it again.
    fn keep(&mut self, content: &Path, error: Error) -> Error {
        let complete = self.at(COMPLETE);
        if has_progress(&self.progress()) || std::fs::rename(content, &complete).is_err() {
            return error;
        }
        // The work folder stays, and gives its lock back.
        self.work = None;
        self.parents.keep();
        let problem = match error {
            Error::Invalid { problem, .. } => problem,
            Error::Io { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        Error::invalid(
            &self.target,
            format!("{problem}; what was to be there is complete in {}", shown(&complete)),
        )
    }
}

impl fmt::Debug for OutputFolder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutputFolder").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Drop for OutputFolder<'_> {
    fn drop(&mut self) {
        let kept = self.at(COMPLETE).symlink_metadata().is_ok()
            || (self.finished.is_none() && self.holds_work());
        let published = self.published().is_some();
        let Some(work) = self.work.take() else { return };
        let tidied = match kept {
            true => {
                self.options.observer.say("what was finished is kept: `resume` goes on with it");
                self.parents.keep();
                // Another folder may have the number of one that is removed.
                let record = if published { Ok(()) } else { work.remove_entry(PUBLISHED) };
                record.and_then(|()| work.remove_entry(CONTENT))
            }
            false => work.remove(),
        };
        if let Err(error) = tidied {
            self.options.observer.say(&error.to_string());
        }
    }
}

/// Whether that is a folder, and no link to one.
fn is_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: OutputOptions<'_> =
        OutputOptions { replace: false, resume: false, part: false, observer: &() };
    const FORCE: OutputOptions<'_> = OutputOptions { replace: true, ..NEW };
    const RESUME: OutputOptions<'_> = OutputOptions { resume: true, ..NEW };

    struct Scene(tempfile::TempDir);

    impl Scene {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn open(
            &self,
            options: OutputOptions<'static>,
        ) -> std::result::Result<OutputFolder<'static>, String> {
            OutputFolder::create(&self.at("out"), options, &[]).map_err(|error| error.to_string())
        }

        /// A run that is stopped after it finished something, with a picture so far where `shown`.
        fn stop(&self, shown: bool) {
            let output = self.open(NEW).unwrap();
            std::fs::write(output.progress().join("done"), "done").unwrap();
            if shown {
                std::fs::write(output.path().join("0000.png"), "so far").unwrap();
                output.finish_for_now().unwrap();
            }
        }

        fn foreign(&self, name: &str) {
            std::fs::create_dir_all(self.at(name)).unwrap();
            std::fs::write(self.at(name).join("thesis"), "mine").unwrap();
        }

        fn names(&self) -> Vec<String> {
            let names = std::fs::read_dir(self.0.path()).unwrap();
            let mut names: Vec<_> =
                names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    #[test]
    fn a_refused_force_throws_nothing_away() {
        let scene = Scene::new();
        scene.stop(false);
        scene.foreign("out");
        assert!(scene.open(FORCE).unwrap_err().contains("secateur did not write it"));
        assert!(scene.at(".out.secateur/progress/done").exists());
        std::fs::remove_dir_all(scene.at("out")).unwrap();
        scene.open(RESUME).unwrap().finish().unwrap();
        assert_eq!(scene.names(), ["out"]);
    }

    #[test]
    fn a_stopped_run_replaces_what_it_left_and_nothing_else() {
        let scene = Scene::new();
        scene.stop(true);
        assert!(scene.open(NEW).unwrap_err().contains("`resume` goes on"));
        let output = scene.open(RESUME).unwrap();
        std::fs::write(output.path().join("0000.png"), "whole").unwrap();
        // Meanwhile somebody puts another folder of pictures there.
        std::fs::rename(scene.at("out"), scene.at("moved")).unwrap();
        std::fs::create_dir(scene.at("out")).unwrap();
        std::fs::write(scene.at("out/0000.png"), "mine").unwrap();
        assert!(output.finish().unwrap_err().to_string().contains("exists already"));
        assert_eq!(std::fs::read_to_string(scene.at("out/0000.png")).unwrap(), "mine");
        assert!(scene.open(RESUME).unwrap_err().contains("exists already"));
        std::fs::remove_dir_all(scene.at("out")).unwrap();
        scene.open(RESUME).unwrap().finish().unwrap();
        assert_eq!(scene.names(), ["moved", "out"]);
    }

    #[test]
    fn a_complete_output_that_found_no_place_waits() {
        let scene = Scene::new();
        let output = scene.open(NEW).unwrap();
        std::fs::write(output.path().join("0000.png"), "whole").unwrap();
        scene.foreign("out");
        let error = output.finish().unwrap_err().to_string();
        assert!(
            error.contains("exists already") && error.contains(".out.secateur/complete"),
            "{error}"
        );
        for options in [NEW, RESUME] {
            assert!(scene.open(options).unwrap_err().contains("is complete in"));
        }
        let complete = scene.at(".out.secateur/complete");
        // Somebody who finds it there may put something beside it.
        std::fs::write(complete.join("thesis"), "mine").unwrap();
        std::fs::rename(scene.at("out"), scene.at("moved")).unwrap();
        assert!(scene.open(FORCE).unwrap_err().contains("thesis in it was not written"));
        std::fs::rename(scene.at("moved"), scene.at("out")).unwrap();
        std::fs::remove_file(complete.join("thesis")).unwrap();
        assert_eq!(std::fs::read_to_string(complete.join("0000.png")).unwrap(), "whole");
        std::fs::rename(complete, scene.at("mine")).unwrap();
        // Nothing is left to keep.
        scene.open(NEW).unwrap_err();
        assert_eq!(scene.names(), ["mine", "out"]);
        assert!(scene.at("out/thesis").exists());
    }

    /// Killed when its output had just appeared, a run is at its end; one of other settings is not,
    /// nor is what was changed since.
    #[test]
    fn a_finished_run_is_known() {
        let scene = Scene::new();
        let mut output = scene.open(NEW).unwrap();
        let content = output.path();
        std::fs::write(content.join("0000.png"), "whole").unwrap();
        std::fs::write(output.progress().join("done"), "done").unwrap();
        assert!(!output.is_finished("this").unwrap());
        write_record(&content).unwrap();
        output.put_in_place(&content, true).unwrap();
        output.work = None;
        drop(output);
        let finished = |request: &str| {
            let mut output = scene.open(RESUME)?;
            output.is_finished(request).map_err(|error| error.to_string())
        };
        let error = finished("that").unwrap_err();
        assert!(error.contains("is complete, and of another model or other settings"), "{error}");
        let written = scene.at("out/0000.png").metadata().unwrap().modified().unwrap();
        std::fs::write(scene.at("out/0000.png"), "other").unwrap();
        let error = finished("this").unwrap_err();
        assert!(error.contains("0000.png in it was changed"), "{error}");
        assert_eq!(scene.names(), [".out.secateur", "out"]);
        std::fs::write(scene.at("out/0000.png"), "whole").unwrap();
        let file = std::fs::File::options().append(true).open(scene.at("out/0000.png")).unwrap();
        file.set_modified(written).unwrap();
        assert!(finished("this").unwrap());
        assert_eq!(scene.names(), ["out"]);
    }

    /// Killed when the two folders had just been exchanged, wherever the new one is by then, what
    /// was replaced goes only as it was written.
    #[test]
    fn what_was_exchanged_is_looked_at() {
        for (written, moved, thesis) in [
            (true, false, false),
            (true, false, true),
            (true, true, true),
            (false, true, true),
            (false, false, true),
        ] {
            let scene = Scene::new();
            std::fs::create_dir(scene.at("out")).unwrap();
            if written {
                std::fs::write(scene.at("out/0000.png"), "old").unwrap();
                write_record(&scene.at("out")).unwrap();
            }
            let mut output = scene.open(FORCE).unwrap();
            let content = output.path();
            write_record(&content).unwrap();
            assert!(output.announce(&content, true).unwrap());
            if !exchange(&content, &scene.at("out")).unwrap() {
                return;
            }
            output.work = None;
            drop(output);
            if thesis {
                std::fs::write(content.join("thesis"), "mine").unwrap();
            }
            if moved {
                std::fs::rename(scene.at("out"), scene.at("moved")).unwrap();
            }
            for options in [NEW, RESUME] {
                let opened = scene.open(options);
                let kept = scene.at(".out.secateur/complete/thesis").exists();
                assert_eq!(kept, thesis, "{written} {moved}");
                match thesis {
                    true => assert!(opened.unwrap_err().contains("is complete in")),
                    false => break,
                }
            }
        }
    }

    /// Killed between the record of what it is about to do and the exchange, a run that went on
    /// goes on.
    #[test]
    fn a_run_that_goes_on_may_be_killed_at_its_end() {
        let scene = Scene::new();
        scene.stop(true);
        let mut output = scene.open(RESUME).unwrap();
        let content = output.path();
        std::fs::write(content.join("0000.png"), "whole").unwrap();
        write_record(&content).unwrap();
        assert!(output.announce(&content, true).unwrap());
        output.work = None;
        drop(output);
        assert!(scene.open(NEW).unwrap_err().contains("`resume` goes on"));
        let output = scene.open(RESUME).unwrap();
        assert!(output.finished.is_none() && output.progress().join("done").exists());
        output.finish().unwrap();
        assert_eq!(scene.names(), ["out"]);
    }

    #[test]
    fn folders_that_are_to_be_made() {
        let scene = Scene::new();
        let error = |path: &str| {
            let (path, input) = (scene.at(path), scene.at("in"));
            let checked =
                OutputFolder::check(&path, NEW, &[&input]).err().map(|error| error.to_string());
            let opened =
                OutputFolder::create(&path, NEW, &[&input]).err().map(|error| error.to_string());
            assert_eq!(checked, opened);
            opened.unwrap_or_default()
        };
        for (path, words) in [
            ("a/b/../out", "`..` behind a folder that is not in"),
            ("a/../out", "`..` behind a folder that is not in"),
            ("in/out", "overlap"),
            ("a/b/out", ""),
        ] {
            assert!(error(path).contains(words), "{path}: {}", error(path));
            assert!(scene.names().is_empty());
        }
    }

    #[test]
    fn what_was_taken_away_is_put_back() {
        let scene = Scene::new();
        drop(scene.open(NEW).unwrap());
        assert!(scene.names().is_empty());
        scene.stop(false);
        scene.foreign(".out.secateur/replaced");
        // As if it had been killed between two renames.
        assert!(scene.open(NEW).unwrap_err().contains("`resume` goes on"));
        assert!(scene.at("out/thesis").exists() && !scene.at(".out.secateur/replaced").exists());
        scene.foreign(".out.secateur/replaced");
        assert!(scene.open(RESUME).unwrap_err().contains("replaced: move it away"));
        assert!(scene.at(".out.secateur/replaced/thesis").exists());
    }

    /// Whatever lies in a folder that has the marker, no link in it is followed.
    #[test]
    #[cfg(unix)]
    fn links_in_a_work_folder() {
        use std::os::unix::fs::symlink;
        let scene = Scene::new();
        scene.foreign("mine");
        scene.stop(false);
        let work = scene.at(".out.secateur");
        std::fs::remove_file(work.join("lock")).unwrap();
        symlink("../mine/thesis", work.join("lock")).unwrap();
        assert!(scene.open(RESUME).unwrap_err().contains(".out.secateur/lock"));
        std::fs::remove_file(work.join("lock")).unwrap();
        std::fs::remove_dir_all(work.join("progress")).unwrap();
        symlink("../mine", work.join("progress")).unwrap();
        assert!(scene.open(RESUME).unwrap_err().contains(".out.secateur/progress"));
        assert_eq!(std::fs::read_to_string(scene.at("mine/thesis")).unwrap(), "mine");
    }

    /// Where there is no exchange, too.
    #[test]
    fn what_waits_in_replaced_is_looked_at() {
        for options in [NEW, FORCE, RESUME] {
            for thesis in [false, true] {
                let scene = Scene::new();
                let made = |text: &str, options: OutputOptions<'static>| {
                    let output = scene.open(options).unwrap();
                    std::fs::write(output.path().join("0000.png"), text).unwrap();
                    output
                };
                made("old", NEW).finish().unwrap();
                std::fs::rename(scene.at("out"), scene.at("old")).unwrap();
                let mut output = made("new", NEW);
                let content = output.path();
                write_record(&content).unwrap();
                output.put_in_place(&content, true).unwrap();
                output.work = None;
                drop(output);
                // As if it had been killed when the new one was in its place.
                let left = scene.at(".out.secateur").join(REPLACED);
                std::fs::rename(scene.at("old"), &left).unwrap();
                if thesis {
                    std::fs::write(left.join("thesis"), "mine").unwrap();
                }
                let _ = scene.open(options).map(drop);
                let kept = scene.at(".out.secateur/complete/thesis").exists()
                    || left.join("thesis").exists();
                assert_eq!(kept, thesis, "replace: {}", options.replace);
                assert_eq!(std::fs::read_to_string(scene.at("out/0000.png")).unwrap(), "new");
            }
        }
        let scene = Scene::new();
        scene.stop(false);
        std::fs::write(scene.at(".out.secateur/replaced"), "mine").unwrap();
        assert!(
            scene.open(NEW).unwrap_err().contains("replaced: is not a folder that secateur made")
        );
        assert!(scene.at(".out.secateur/replaced").exists());
    }

    /// What a check says is what a run would meet.
    #[test]
    fn checks_make_nothing() {
        let scene = Scene::new();
        scene.foreign("taken");
        scene.foreign(".mine.secateur");
        let long = "y".repeat(256);
        for (name, options, words) in [
            ("new/taken", NEW, ""),
            ("new/deep/taken", FORCE, ""),
            ("taken", NEW, "exists already"),
            ("taken", FORCE, "secateur did not write it"),
            ("mine", NEW, "is not a folder that secateur made"),
            (".a.secateur", NEW, "secateur's own work folders"),
            (".a.secateur/out", NEW, "secateur's own work folders"),
            (&long, NEW, "256 bytes"),
            (&format!("{long}/out"), NEW, "256 bytes"),
        ] {
            let found = OutputFolder::check(&scene.at(name), options, &[])
                .map_err(|error| error.to_string());
            match words {
                "" => found.unwrap(),
                words => assert!(found.unwrap_err().contains(words), "{name}"),
            }
        }
        assert_eq!(scene.names(), [".mine.secateur", "taken"]);
    }

    /// An output in another one's work folder would go with that.
    #[test]
    fn inside_a_work_folder() {
        let scene = Scene::new();
        let outer = scene.open(NEW).unwrap();
        let inside = outer.progress().join("a/inner");
        for options in [NEW, FORCE] {
            let error = OutputFolder::create(&inside, options, &[]).unwrap_err().to_string();
            assert!(error.contains("in the work folder of another output"), "{error}");
        }
        assert!(!outer.progress().join("a").exists());
        OutputFolder::create(&inside, OutputOptions { part: true, ..NEW }, &[])
            .unwrap()
            .finish()
            .unwrap();
        assert!(inside.is_dir());
    }

    /// Where the work folder is moved away, and another put in its place, that one is left alone.
    #[test]
    fn another_work_folder_in_its_place() {
        for marked in [false, true] {
            let scene = Scene::new();
            let output = scene.open(NEW).unwrap();
            std::fs::write(output.path().join("0000.png"), "whole").unwrap();
            let work = scene.at(".out.secateur");
            std::fs::rename(&work, scene.at("moved")).unwrap();
            scene.foreign(".out.secateur/content");
            if marked {
                std::fs::copy(scene.at("moved/secateur.json"), work.join("secateur.json")).unwrap();
            }
            let error = output.finish().unwrap_err().to_string();
            assert!(
                error.contains(".out.secateur: is no longer the folder that this run made"),
                "{error}"
            );
            assert!(
                work.join("content/thesis").exists() && scene.at("moved/content/0000.png").exists()
            );
            assert_eq!(scene.names(), [".out.secateur", "moved"]);
        }
    }

    /// What lies in place of a file of the progress.
    #[test]
    fn misplaced_progress() {
        let scene = Scene::new();
        scene.stop(false);
        let progress = scene.at(".out.secateur/progress");
        std::fs::create_dir(progress.join("run.json")).unwrap();
        let output = scene.open(RESUME).unwrap();
        assert!(!progress.join("run.json").exists());
        drop(output);
        scene.foreign(".out.secateur/progress/package-0000.json");
        assert!(
            scene
                .open(RESUME)
                .unwrap_err()
                .contains("package-0000.json: is where secateur keeps a file")
        );
        assert!(progress.join("package-0000.json/thesis").exists());
        drop(scene.open(FORCE).unwrap());
        assert!(scene.names().is_empty());
    }

    /// Folders above an output go with it.
    #[test]
    fn folders_above() {
        let scene = Scene::new();
        let target = scene.at("a/b/out");
        drop(OutputFolder::create(&target, NEW, &[]).unwrap());
        assert!(scene.names().is_empty());
        OutputFolder::create(&target, NEW, &[]).unwrap().finish().unwrap();
        assert!(target.is_dir());
        let error =
            OutputFolder::create(&scene.at("a"), FORCE, &[&target]).unwrap_err().to_string();
        assert!(error.contains("overlap"), "{error}");
    }
}
