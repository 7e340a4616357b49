"""Copies of candle-core and candle-kernels that open CUDA's libraries when they are first used.

    patch.py REGISTRY OUT

REGISTRY: the folder of cargo's unpacked sources. A copy that this script made is not written again,
so that nothing is built again.
"""

import hashlib
import shutil
import sys
from pathlib import Path

VERSION = "0.11.1"

# Functions of the names that the library of quantised models has: none is called.
STUBS = r"""
    let names: Vec<String> = std::fs::read_to_string("src/ffi.rs")
        .unwrap()
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("pub fn "))
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .collect();
    let mut source = String::from("#include <stdlib.h>\n");
    for name in names {
        source += &format!("void {name}(void) {{ abort(); }}\n");
    }
    let (file, object) = (out_dir.join("stubs.c"), out_dir.join("stubs.o"));
    let library = out_dir.join("libmoe.a");
    std::fs::write(&file, source).unwrap();
    let _ = std::fs::remove_file(&library);
    let run = |command: &mut std::process::Command| assert!(command.status().unwrap().success());
    run(std::process::Command::new("cc").args(["-c", "-fPIC", "-o"]).arg(&object).arg(&file));
    run(std::process::Command::new("ar").arg("rcs").arg(&library).arg(&object));
    println!("cargo:rustc-link-search={}", out_dir.display());
    println!("cargo:rustc-link-lib=static=moe");
    Ok(())
}
"""


def replaced(text, old, new, where):
    if text.count(old) != 1:
        sys.exit(f"{where}: {old!r} is there {text.count(old)} times: another version of candle?")
    return text.replace(old, new)


def cut(text, start, new, where):
    """`new` in place of all from `start` on."""
    return replaced(text, start, "\0", where).split("\0")[0] + new


def main(registry, out):
    edits = {
        "candle-core/Cargo.toml": lambda text, where: replaced(
            text, '"dynamic-linking"', '"dynamic-loading"', where
        ),
        "candle-kernels/build.rs": lambda text, where: cut(
            text, "    let mut moe_sources", STUBS, where
        ),
    }
    own = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    for name in ("candle-core", "candle-kernels"):
        source, copy = Path(registry) / f"{name}-{VERSION}", Path(out) / name
        made_by = copy / ".made-by"
        if made_by.exists() and made_by.read_text() == own:
            continue
        unfinished = copy.with_name(f"{name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished)
        for path, edit in edits.items():
            crate, file = path.split("/", 1)
            if crate == name:
                text = (unfinished / file).read_text()
                (unfinished / file).write_text(edit(text, path))
        for folder in ("src/moe", "src/mmq_gguf"):
            shutil.rmtree(unfinished / folder, ignore_errors=True)
        (unfinished / made_by.name).write_text(own)
        shutil.rmtree(copy, ignore_errors=True)
        unfinished.rename(copy)


main(*sys.argv[1:])
