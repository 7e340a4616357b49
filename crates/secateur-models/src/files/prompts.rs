//! Lists of prompts: plain text, and the table formats of data sets.

use crate::error::{Error, Result, invalid};
use crate::files::read::{Limit, parse_json, read_bytes};
use serde_json::Value;
use std::path::Path;

/// The most bytes of a prompt.
const LONGEST: usize = 1 << 16;
/// The most prompts of a list.
const MOST: usize = 1_000_000;
/// The names of columns that hold prompts. The first that exists is read.
const COLUMNS: [&str; 3] = ["prompt", "caption", "text"];

/// Reads the prompts of a file. A text file has one prompt per line; empty lines are left out. CSV,
/// TSV, JSON (an array) and JSONL files, by the ending of the name, have them in a column `prompt`,
/// `caption` or `text`. An entry of JSON may also be the prompt itself. A byte order mark is not
/// part of a prompt.
///
/// # Errors
/// If the file cannot be read, is not text of that format, or holds no prompt.
pub fn read_prompts(path: &Path) -> Result<Vec<String>> {
    let text = decoded(read_bytes(path, Limit::Prompts)?)
        .map_err(|problem| Error::invalid(path, problem))?;
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let found = match &*ending {
        "csv" => table(&text, b','),
        "tsv" => table(&text, b'\t'),
        "json" => entries(&text),
        "jsonl" | "ndjson" => {
            let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
            lines
                .map(|(number, line)| {
                    entry(line).map_err(|problem| format!("line {number}: {problem}"))
                })
                .collect()
        }
        _ => Ok(text.lines().map(str::to_owned).collect()),
    };
    let found: Vec<String> = found.map_err(|problem| Error::invalid(path, problem))?;
    let mut prompts = Vec::with_capacity(found.len().min(MOST));
    for (number, prompt) in (1..).zip(&found).map(|(number, prompt)| (number, prompt.trim())) {
        if prompt.len() > LONGEST || prompts.len() == MOST {
            invalid!(
                path,
                "entry {number}: a list has at most {MOST} prompts, each of at most {LONGEST} bytes"
            );
        }
        if !prompt.is_empty() {
            prompts.push(prompt.to_owned());
        }
    }
    if prompts.is_empty() {
        invalid!(path, "no prompts: one a line is expected");
    }
    Ok(prompts)
}

/// UTF-8 with or without a byte order mark, or UTF-16 with one.
fn decoded(bytes: Vec<u8>) -> std::result::Result<String, String> {
    let units =
        |of: fn([u8; 2]) -> u16| bytes[2..].chunks_exact(2).map(move |pair| of([pair[0], pair[1]]));
    let wide = match bytes.get(..2) {
        Some([0xff, 0xfe]) => {
            Some(String::from_utf16(&units(u16::from_le_bytes).collect::<Vec<_>>()))
        }
        Some([0xfe, 0xff]) => {
            Some(String::from_utf16(&units(u16::from_be_bytes).collect::<Vec<_>>()))
        }
        _ => None,
    };
    if let Some(wide) = wide {
        return wide.map_err(|_| "is not text in UTF-16, which its first bytes say".into());
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        format!("is not text in UTF-8: the byte at {place} is none of a character")
    })?;
    Ok(text.strip_prefix('\u{feff}').map_or_else(|| text.clone(), str::to_owned))
}

/// The place of the column of prompts.
fn column<'a>(names: impl Iterator<Item = &'a str> + Clone) -> std::result::Result<usize, String> {
    let place =
        |wanted: &&str| names.clone().position(|name| name.trim().eq_ignore_ascii_case(wanted));
    COLUMNS.iter().find_map(place).ok_or_else(|| {
        let found: Vec<&str> = names.clone().take(8).collect();
        format!("has no column called {}; it has: {}", COLUMNS.join(", "), found.join(", "))
    })
}

fn table(text: &str, delimiter: u8) -> std::result::Result<Vec<String>, String> {
    // In tables set apart by tabs a quotation mark is a character as any other.
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(delimiter == b',')
        .from_reader(text.as_bytes());
    let place = column(reader.headers().map_err(|error| error.to_string())?.iter())?;
    let prompt = |record: csv::Result<csv::StringRecord>| {
        let record = record.map_err(|error| error.to_string())?;
        Ok(record.get(place).unwrap_or_default().to_owned())
    };
    reader.records().map(prompt).collect()
}

fn entries(text: &str) -> std::result::Result<Vec<String>, String> {
    let entries: Vec<Value> = parse_json(text.as_bytes())
        .map_err(|error| format!("is not an array of prompts in JSON: {error}"))?;
    (1..)
        .zip(entries)
        .map(|(number, value)| {
            prompt(value).map_err(|problem| format!("entry {number}: {problem}"))
        })
        .collect()
}

fn entry(line: &str) -> std::result::Result<String, String> {
    prompt(parse_json(line.as_bytes()).map_err(|error| error.to_string())?)
}

/// The prompt that a value is, or has.
fn prompt(value: Value) -> std::result::Result<String, String> {
    let Value::Object(fields) = value else {
        return value
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| "is neither a text nor an object".into());
    };
    let place = column(fields.keys().map(String::as_str))?;
    let found = fields.iter().nth(place).map(|(name, value)| (name.as_str(), value.as_str()));
    let (name, text) = found.unwrap_or_default();
    text.map(str::to_owned).ok_or_else(|| format!("{name} is not a text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, bytes: &[u8]) -> std::result::Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let read = read_prompts(&path).map_err(|error| error.to_string());
        read.inspect_err(|error| assert!(error.contains(name), "{error}"))
    }

    #[test]
    fn every_kind_of_list() {
        let utf16 = |bytes: fn(u16) -> [u8; 2], mark: &[u8]| {
            let text = "red apple\r\n\n gr\u{fc}n \n".encode_utf16().flat_map(bytes);
            mark.iter().copied().chain(text).collect::<Vec<u8>>()
        };
        let two: [(&str, &[u8]); 6] = [
            ("a.txt", "\u{feff}red apple\r\n\n gr\u{fc}n \n".as_bytes()),
            ("no-ending", "red apple\ngr\u{fc}n".as_bytes()),
            ("little.txt", &utf16(u16::to_le_bytes, &[0xff, 0xfe])),
            ("big.txt", &utf16(u16::to_be_bytes, &[0xfe, 0xff])),
            ("a.CSV", "\u{feff}id,Prompt\n1,\"red apple\"\n2,\n3,gr\u{fc}n\n".as_bytes()),
            ("a.tsv", "text\tcaption\nx\tred apple\ny\tgr\u{fc}n\n".as_bytes()),
        ];
        for (name, bytes) in two {
            assert_eq!(read(name, bytes).unwrap(), ["red apple", "gr\u{fc}n"], "{name}");
        }
        assert_eq!(read("a.csv", b"text\n\"one, \"\"two\"\"\"\n").unwrap(), ["one, \"two\""]);
        assert_eq!(read("a.tsv", b"prompt\n\"one\n").unwrap(), ["\"one"]);
        let json = r#"["red apple", {"id": 1, "caption": "pear"}]"#;
        assert_eq!(read("a.json", json.as_bytes()).unwrap(), ["red apple", "pear"]);
        let lines = "{\"text\": \"red apple\", \"n\": 2}\n\n\"pear\"\n";
        assert_eq!(read("a.jsonl", lines.as_bytes()).unwrap(), ["red apple", "pear"]);
        // Of a text file every line is a prompt.
        assert_eq!(read("a.txt", b"id,prompt\n1,x\n").unwrap(), ["id,prompt", "1,x"]);
    }

    #[test]
    fn what_is_no_list() {
        let long = vec![b'a'; LONGEST + 1];
        for (name, bytes, words) in [
            (
                "a.csv",
                b"id,name\n1,x\n".as_slice(),
                "no column called prompt, caption, text; it has: id, name",
            ),
            ("a.json", b"{\"prompt\": \"x\"}", "not an array"),
            ("a.json", b"[\"x\", 3]", "entry 2: is neither"),
            ("a.jsonl", b"{\"prompt\": \"x\"}\n{\"prompt\": 1}\n", "line 2: prompt is not a text"),
            ("a.jsonl", b"red apple\n", "line 1: expected value"),
            ("a.txt", b"\n \n", "no prompts"),
            ("a.txt", &[0x41, 0xe9], "the byte at 1"),
            ("a.txt", &[0xff, 0xfe, 0x00, 0xd8], "UTF-16"),
            ("a.txt", &long, "at most 65536 bytes"),
        ] {
            let error = read(name, bytes).unwrap_err();
            assert!(error.contains(words), "{name}: {error}");
        }
    }
}
