//! Reading files that may hold anything, and writing files and folders whole or not at all.

mod digest;
mod mounts;
mod names;
mod output;
mod read;
mod recognise;
mod rename;
mod sealed;
pub(crate) mod tensors;
pub(crate) mod tree;
mod work;
mod write;

pub use digest::{digest, digest_of_file, digest_of_files, digest_of_folder, digest_of_texts};
pub use names::shown;
pub use output::{OutputFolder, OutputOptions};
pub use read::{Limit, open, read_bytes, read_json, read_text};
pub(crate) use read::{lfs_pointer, parse_json};
pub use sealed::{read_sealed, write_sealed};
pub use tensors::{Array, Values, check_digest, read_each_tensor, read_tensors, write_tensors};
pub use work::remove;
pub(crate) use write::{copy, copy_file, new_file, sync_folders};
pub use write::{link_files, write_atomically};
