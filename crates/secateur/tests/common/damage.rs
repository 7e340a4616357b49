//! Damages files at random, by what they hold.

use super::harness::random::Random;
use serde_json::{Map, Value};

/// Damages the file of that name.
pub(crate) fn damage(name: &str, bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let structured = random.below(5) > 0;
    let damaged = match name.rsplit('.').next() {
        Some("json") if structured => json(bytes, random),
        Some("safetensors") if structured => safetensors(bytes, random),
        Some("toml") if structured => toml(bytes, random),
        Some("txt" | "toml" | "json") => lines(bytes, random),
        _ => None,
    };
    damaged.filter(|damaged| damaged != bytes).unwrap_or_else(|| raw(bytes, random))
}

/// Numbers as JSON and TOML spell them, and some as they do not.
const NUMBERS: [&str; 25] = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "65536",
    "1000000000",
    "2147483647",
    "2147483648",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "0.5",
    "-0.0",
    "1e-320",
    "1e38",
    "1e308",
    "1e400",
    "NaN",
    "1_000",
];

/// Strings as JSON spells them.
fn string(random: &mut Random) -> String {
    const STRINGS: [&str; 17] = [
        r#""""#,
        r#"" ""#,
        r#""\u0000""#,
        r#""\u001b[31m\u0007\r\b""#,
        r#""\u009b31m""#,
        r#""\u202egnp.exe""#,
        r#""\ud800""#,
        r#""\n\nerror: all is well""#,
        r#""../../../../etc/passwd""#,
        r#""/dev/zero""#,
        r#""/proc/self/environ""#,
        r#"".""#,
        r#""..""#,
        r#""%s%n{}$(id)""#,
        r#""é́́́́́́́́""#,
        r#""fp16""#,
        r#""1""#,
    ];
    match random.below(8) {
        0 => format!("{:?}", "a".repeat(*random.pick(&[256, 4096, 1 << 16]))),
        1 => format!("\"{}\"", "\\u001b".repeat(*random.pick(&[3, 3000]))),
        _ => (*random.pick(&STRINGS)).to_owned(),
    }
}

/// Any value, as JSON spells it.
fn value(random: &mut Random) -> String {
    const OTHERS: [&str; 9] =
        ["null", "true", "false", "[]", "{}", "[[]]", "[null]", "[0]", r#"{"a":1}"#];
    match random.below(10) {
        0..4 => (*random.pick(&NUMBERS)).to_owned(),
        4..7 => string(random),
        7 => {
            let depth = *random.pick(&[3, 127, 130, 100_000]);
            format!("{}{}", "[".repeat(depth), "]".repeat(depth))
        }
        8 => format!("[{}0]", "0,".repeat(*random.pick(&[10, 100_000]))),
        _ => (*random.pick(&OTHERS)).to_owned(),
    }
}

/// The places in a value, as JSON pointers.
fn places(value: &Value, at: &str, places: &mut Vec<String>) {
    places.push(at.to_owned());
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                self::places(value, &format!("{at}/{key}"), places);
            }
        }
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                self::places(value, &format!("{at}/{index}"), places);
            }
        }
        _ => {}
    }
}

/// Changes a value at one place.
fn json(bytes: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    // Stand for what no value can hold.
    const RAW: &str = "@@raw@@";
    const KEY: &str = "@@key@@";
    let mut json: Value = serde_json::from_slice(bytes).ok()?;
    let mut all = Vec::new();
    places(&json, "", &mut all);
    let place = random.pick(&all).clone();
    let (above, _) = place.rsplit_once('/').unwrap_or_default();
    let key = place.rsplit('/').next().unwrap_or_default().replace("~1", "/").replace("~0", "~");
    let (mut raw, mut new_key) = ("null".to_owned(), String::new());
    match random.below(10) {
        0 => match json.pointer_mut(above)? {
            Value::Object(map) => drop(map.shift_remove(&key)?),
            Value::Array(values) => drop(values.remove(key.parse().ok()?)),
            _ => return None,
        },
        // The same key twice.
        1 => {
            raw = value(random);
            new_key = serde_json::to_string(&key).ok()?;
            json.pointer_mut(above)?.as_object_mut()?.insert(KEY.into(), RAW.into());
        }
        2 => {
            let map = json.pointer_mut(above)?.as_object_mut()?;
            let value = map.shift_remove(&key)?;
            map.insert(KEY.into(), value);
            new_key = string(random);
        }
        3 => {
            let other = random.pick(&all).clone();
            let (a, b) = (json.pointer(&place)?.clone(), json.pointer(&other)?.clone());
            *json.pointer_mut(&place)? = b;
            *json.pointer_mut(&other)? = a;
        }
        4 => {
            let value = json.pointer_mut(&place)?;
            let depth = *random.pick(&[1, 1, 126]);
            *value = (0..depth).fold(value.take(), |value, _| Value::Array(vec![value]));
        }
        // A little different.
        5 => {
            let value = json.pointer_mut(&place)?;
            *value = match value.take() {
                Value::Number(number) => match (number.as_i64(), random.below(5)) {
                    (Some(number), 0) => number.wrapping_add(1).into(),
                    (Some(number), 1) => number.wrapping_sub(1).into(),
                    (Some(number), 2) => number.wrapping_neg().into(),
                    (Some(number), 3) => number.wrapping_mul(2).into(),
                    _ => number.to_string().into(),
                },
                Value::String(text) => match random.below(3) {
                    0 => text.chars().rev().collect::<String>().into(),
                    1 => format!("{text}{text}").into(),
                    _ => text.to_uppercase().into(),
                },
                Value::Array(values) => match random.below(3) {
                    0 => [values.clone(), values].concat().into(),
                    1 => values.into_iter().rev().collect::<Vec<_>>().into(),
                    _ => values.into_iter().skip(1).collect::<Vec<_>>().into(),
                },
                Value::Object(map) => Value::Object(map.into_iter().rev().collect::<Map<_, _>>()),
                Value::Bool(value) => (!value).into(),
                Value::Null => 0.into(),
            };
        }
        _ => {
            raw = value(random);
            *json.pointer_mut(&place)? = RAW.into();
        }
    }
    let text = serde_json::to_string_pretty(&json).ok()?;
    Some(
        text.replace(&format!("{RAW:?}"), &raw).replace(&format!("{KEY:?}"), &new_key).into_bytes(),
    )
}

/// Changes the header, its length, or the data.
fn safetensors(bytes: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let length = usize::try_from(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?)).ok()?;
    let (header, data) = (bytes.get(8..8 + length)?, bytes.get(8 + length..)?);
    let rebuilt = |length: u64, header: &[u8], data: &[u8]| {
        Some([&length.to_le_bytes(), header, data].concat())
    };
    let whole = |header: &[u8]| rebuilt(header.len() as u64, header, data);
    match random.below(8) {
        0 => {
            let lengths = [
                0,
                1,
                7,
                length - 1,
                length + 1,
                length + 8,
                bytes.len(),
                100_000_001,
                1 << 32,
                usize::MAX,
            ];
            rebuilt(*random.pick(&lengths) as u64, header, data)
        }
        1 => whole(&json(header, random)?),
        2 => whole(&raw(header, random)),
        3 => rebuilt(length as u64, header, &raw(data, random)),
        // NaN and infinities in all types of float.
        4 => {
            let mut data = data.to_vec();
            let at = random.below(data.len() / 4) * 4;
            let number: [u8; 4] = *random.pick(&[
                [0xff; 4],
                [0, 0, 0x80, 0x7f],
                [0, 0x7c, 0, 0x7c],
                [0x80, 0x7f, 0x80, 0x7f],
            ]);
            data.get_mut(at..at + 4)?.copy_from_slice(&number);
            rebuilt(length as u64, header, &data)
        }
        // One tensor's entry.
        _ => {
            let mut map: Map<String, Value> = serde_json::from_slice(header).ok()?;
            let names: Vec<String> =
                map.keys().filter(|name| *name != "__metadata__").cloned().collect();
            let (name, other) = (random.pick(&names).clone(), random.pick(&names).clone());
            let field = *random.pick(&["shape", "dtype", "data_offsets"]);
            match random.below(5) {
                0 => {
                    let info = map.get(&other)?.clone();
                    map.insert(name, info);
                }
                1 => {
                    let taken = map.get(&other)?[field].clone();
                    map[&name][field] = taken;
                }
                2 if field == "dtype" => {
                    let types = [
                        "F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64",
                        "f32", "",
                    ];
                    map[&name][field] = (*random.pick(&types)).into();
                }
                2 | 3 => {
                    let numbers: [u64; 9] =
                        [0, 1, 2, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, u64::MAX - 1, u64::MAX];
                    let list = map.get_mut(&name)?[if field == "dtype" { "shape" } else { field }]
                        .as_array_mut()?;
                    let index = random.below(list.len());
                    *list.get_mut(index)? = (*random.pick(&numbers)).into();
                }
                _ => {
                    let list = map.get_mut(&name)?["shape"].as_array_mut()?;
                    match random.below(3) {
                        0 => list.push(1.into()),
                        1 => list.clear(),
                        _ => list.reverse(),
                    }
                }
            }
            whole(&serde_json::to_vec(&map).ok()?)
        }
    }
}

/// Changes a value, or a key, of a recipe.
fn toml(bytes: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    const KEYS: [&str; 14] = [
        "name",
        "model",
        "out",
        "recipe",
        "resume",
        "force",
        "json",
        "statistics",
        "save-statistics",
        "threads",
        "steps",
        "--steps",
        "no-such-option",
        "a.b",
    ];
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let settings: Vec<usize> =
        (0..lines.len()).filter(|&line| lines[line].contains(" = ")).collect();
    let line = *random.pick(&settings);
    let (key, old) =
        lines[line].split_once(" = ").map(|(key, old)| (key.to_owned(), old.to_owned()))?;
    match random.below(5) {
        0 => lines[line] = format!("{} = {old}", random.pick(&KEYS)),
        1 => lines.insert(line, format!("{} = {}", random.pick(&KEYS), value(random))),
        2 => {
            lines[line] = format!(
                "{key} = '{}'",
                random.pick(&["", "/dev/zero", "..", "a\tb", "slim", "--help"])
            )
        }
        3 => lines.insert(
            line,
            (*random.pick(&["[[method]]", "[method]", "[[method.a]]", "[[methods]]", "["])).into(),
        ),
        _ => lines[line] = format!("{key} = {}", value(random)),
    }
    Some((lines.join("\n") + "\n").into_bytes())
}

/// Changes the lines of a text.
fn lines(bytes: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    const ODD: [&str; 7] = ["\r", "\0", "\u{1b}[31m", "\u{202e}", "\u{feff}", " x y z", "\u{85}"];
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let (a, b) = (random.below(lines.len()), random.below(lines.len()));
    lines.get(a)?;
    match random.below(9) {
        0 => drop(lines.remove(a)),
        1 => lines.insert(b, lines[a].clone()),
        2 => lines.swap(a, b),
        3 => lines.truncate(a),
        4 => lines[a] = "a".repeat(*random.pick(&[300, 1 << 16, 1 << 22])),
        5 => lines[a] += *random.pick(&ODD),
        6 => lines[a] = String::new(),
        7 => lines.insert(a, "\n".repeat(*random.pick(&[3, 100_000]))),
        _ => lines[a] = lines[a].chars().rev().collect(),
    }
    Some((lines.join("\n") + "\n").into_bytes())
}

/// Changes bytes, whatever they mean.
fn raw(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = random.below(bytes.len());
    let end = (at + 1 + random.below(*random.clone().pick(&[1, 16, 4096]))).min(bytes.len());
    match random.below(10) {
        0 => bytes.truncate(at),
        1..4 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        4 => bytes[at..end].fill(0),
        5 => drop(bytes.drain(at..end)),
        6 => {
            let part = bytes[at..end].to_vec();
            bytes.splice(end..end, part);
        }
        7 => {
            let part = *random.pick(&[
                b"\0".as_slice(),
                b"\xff\xfe",
                b"\x1b[31m",
                b"\xef\xbb\xbf",
                b"\"",
                b"}",
                b",",
            ]);
            bytes.splice(at..at, part.iter().copied());
        }
        8 => {
            let part = *random.pick(&[b"\0\0\0\0\0\0\0\0".as_slice(), b"{}", b"x"]);
            bytes.extend_from_slice(part);
        }
        _ => {
            let whole: &[&[u8]] =
                &[b"", b"{}", b"null", b"[]", b"\"\"", b"0", b"PK\x03\x04", b"\xff\xfe", b"\n"];
            bytes = random.pick(whole).to_vec();
        }
    }
    bytes
}
