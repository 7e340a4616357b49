//! Opening and reading files of unknown origin. Only regular files are read, and each kind of text
//! has a size limit.

use crate::error::{Error, Result, invalid};
use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::HashSet;
use std::fmt;
use std::fs::{File, FileType, OpenOptions};
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

/// The largest size for a kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Configurations, indices, manifests and schedules.
    Config,
    /// Vocabularies, merges and whole tokenizers.
    Vocabulary,
    /// Lists of prompts.
    Prompts,
    /// Recipes.
    Recipe,
    /// Reports, and the files that a run writes for itself.
    Report,
}

impl Limit {
    /// The limit in bytes. The content of a text can take 70 times its bytes in memory: 1 GiB is
    /// enough for every kind.
    #[must_use]
    pub fn bytes(self) -> u64 {
        const MIB: u64 = 1 << 20;
        match self {
            Self::Recipe => MIB,
            Self::Config => 8 * MIB,
            Self::Vocabulary | Self::Prompts => 12 * MIB,
            Self::Report => 16 * MIB,
        }
    }
}

/// Opens a regular file for reading. Links are followed. Pipes, devices and folders are refused
/// without waiting for them.
///
/// # Errors
/// If the file is not regular, or cannot be opened.
pub fn open(path: &Path) -> Result<File> {
    let regular = |kind: FileType| match kind.is_file() {
        true => Ok(()),
        false => {
            Err(Error::invalid(path, format!("is {}, and a regular file is wanted", spelled(kind))))
        }
    };
    // Some devices do something when they are opened.
    regular(std::fs::metadata(path).map_err(Error::io(path))?.file_type())?;
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // A pipe in its place by now is not waited for.
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    }
    let file = options.open(path).map_err(Error::io(path))?;
    regular(file.metadata().map_err(Error::io(path))?.file_type())?;
    Ok(file)
}

fn spelled(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
    }
    if kind.is_dir() { "a folder" } else { "a device" }
}

/// Reads a whole file.
///
/// # Errors
/// If the file is not regular, is larger than `limit`, or cannot be read.
pub fn read_bytes(path: &Path, limit: Limit) -> Result<Vec<u8>> {
    let most = limit.bytes();
    let mut bytes = Vec::new();
    let mut file = open(path)?;
    let told = file.metadata().map_err(Error::io(path))?.len();
    // Some files of the system have a size of 0 and no end.
    if told <= most {
        Read::by_ref(&mut file).take(most + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    }
    if let Some(problem) = lfs_pointer(&bytes) {
        return Err(Error::invalid(path, problem));
    }
    if told > most || bytes.len() as u64 > most {
        invalid!(path, "has more than {} MiB, the most for such a file", most >> 20);
    }
    Ok(bytes)
}

/// Describes what is wrong with a file that begins with these bytes, if it stands for another file.
pub(crate) fn lfs_pointer(bytes: &[u8]) -> Option<&'static str> {
    let pointer = bytes.starts_with(b"version https://git-lfs.github.com/spec/");
    pointer.then_some(
        "is a git-lfs pointer, and not the file itself: `git lfs pull` in its \
        repository fetches that",
    )
}

/// Reads a text file.
///
/// # Errors
/// As [`read_bytes`], or if the file is not UTF-8.
pub fn read_text(path: &Path, limit: Limit) -> Result<String> {
    String::from_utf8(read_bytes(path, limit)?).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        Error::invalid(
            path,
            format!("is not text in UTF-8: the byte at {place} is none of a character"),
        )
    })
}

/// Reads a JSON file.
///
/// # Errors
/// As [`read_text`], if the file is not JSON of the wanted form, or if an object has a name twice,
/// as some readers take the first and others the last.
pub fn read_json<T: DeserializeOwned>(path: &Path, limit: Limit) -> Result<T> {
    parse_json(&read_bytes(path, limit)?).map_err(|error| Error::invalid(path, error))
}

/// What JSON says in which no name stands in an object twice.
pub(crate) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice::<Once>(bytes).and_then(|Once| serde_json::from_slice(bytes))
}

/// Any JSON in whose objects each name stands once.
struct Once;

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Once;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> std::result::Result<Once, E> {
        Ok(Once)
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<Once, E> {
        Ok(Once)
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<Once, E> {
        Ok(Once)
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<Once, E> {
        Ok(Once)
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<Once, E> {
        Ok(Once)
    }

    fn visit_str<E>(self, _: &str) -> std::result::Result<Once, E> {
        Ok(Once)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Once, A::Error> {
        while seq.next_element::<Once>()?.is_some() {}
        Ok(Once)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Once, A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            map.next_value::<Once>()?;
            if let Some(name) = names.replace(name) {
                return Err(A::Error::custom(format!("{name} stands there twice")));
            }
        }
        Ok(Once)
    }
}

/// An object with its entries in their order. No name occurs twice.
pub(crate) struct Unique<V>(pub(crate) Vec<(String, V)>);

impl<'de, V: serde::Deserialize<'de>> serde::Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: serde::Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Self::Value, A::Error> {
                let (mut entries, mut names) = (Vec::new(), std::collections::HashSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("{name} stands there twice")));
                    }
                    let value = map
                        .next_value()
                        .map_err(|error| A::Error::custom(format!("{name}: {error}")))?;
                    entries.push((name, value));
                }
                Ok(Unique(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use crate::files::*;

    #[test]
    fn what_is_no_file_or_has_no_end_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let made = std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap();
        assert!(made.success());
        let giant = std::fs::File::create(at("giant")).unwrap();
        giant.set_len(1 << 40).unwrap();
        std::fs::write(at("latin"), [0x41, 0xe9]).unwrap();
        let large = vec![b' '; Limit::Recipe.bytes() as usize + 1];
        std::fs::write(at("large"), &large).unwrap();
        std::fs::write(at("fits"), &large[1..]).unwrap();
        for (path, words) in [
            (at("pipe"), "a pipe"),
            ("/dev/zero".into(), "a device"),
            (folder.path().into(), "a folder"),
            (at("giant"), "more than 1 MiB"),
            (at("large"), "more than 1 MiB"),
            (at("latin"), "the byte at 1"),
            (at("none"), "No such file"),
        ] {
            let error = read_text(&path, Limit::Recipe).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(&*path.to_string_lossy()), "{error}");
        }
        for twice in
            [r#"{"steps": 1, "steps": 1}"#, r#"{"a": [{"steps": {}, "b": null, "steps": 1.5}]}"#]
        {
            std::fs::write(at("twice.json"), twice).unwrap();
            let error = read_json::<serde_json::Value>(&at("twice.json"), Limit::Config)
                .unwrap_err()
                .to_string();
            assert!(error.contains("twice.json: steps stands there twice"), "{error}");
        }
        std::fs::write(
            at("once.json"),
            r#"{"a": {"a": [1, -1, true, null, "a", 0.5]}, "b": {"a": []}}"#,
        )
        .unwrap();
        read_json::<serde_json::Value>(&at("once.json"), Limit::Config).unwrap();
        assert_eq!(read_text(&at("fits"), Limit::Recipe).unwrap().len(), large.len() - 1);
    }
}
