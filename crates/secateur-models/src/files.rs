//! Reading files that may hold anything, and writing files and folders whole or not at all.

pub(crate) mod checkpoint;
mod digest;
mod mounts;
mod names;
pub(crate) mod options;
mod output;
mod prompts;
mod read;
mod recognise;
mod rename;
mod sealed;
pub(crate) mod single_file;
pub(crate) mod tensors;
pub(crate) mod tree;
mod work;
mod write;

pub use crate::error::shown;
pub use checkpoint::{Checkpoint, TensorInfo};
pub(crate) use checkpoint::{DIFFUSERS_STEM, TRANSFORMERS_STEM, TensorFile, variants};
pub(crate) use digest::Digests;
pub use digest::{digest, digest_of_file, digest_of_files, digest_of_folder, digest_of_texts};
pub(crate) use options::{
    ACTIVATIONS, LARGEST, Numbers, OF_TRANSFORMERS, Options, activation, check_eps, check_heads,
    check_layers, check_numbers, config_fields, read_config, read_fields,
};
pub use output::{OutputFolder, OutputOptions, free_space};
pub use prompts::read_prompts;
pub(crate) use read::parse_json;
pub use read::{Limit, open, read_bytes, read_json, read_text};
pub use sealed::{read_sealed, write_sealed};
pub use single_file::SingleFile;
pub(crate) use single_file::{Marker, Naming, Piece};
pub use tensors::{LogFile, Logged, TensorLog, check_digest, read_tensors, write_tensors};
pub(crate) use tensors::{candle_dtype, encode, header};
pub(crate) use tree::{Tree, is_inside};
pub use work::remove;
pub(crate) use write::{copy, copy_file, new_file};
pub use write::{link_files, write_atomically};
