//! Writing of reports, each file atomically.

use crate::error::{Error, Result};
use crate::html::{PicturePair, html};
use crate::report::Report;
use secateur_models::files::write_atomically;
use std::path::Path;

impl Report {
    /// Writes `report.html` (one self-contained page, with `pictures`) and `report.json` into
    /// `folder`, which must exist. Existing reports there are replaced.
    ///
    /// # Errors
    /// The folder does not exist, or a file cannot be written.
    pub fn write(&self, pictures: &[PicturePair], folder: &Path) -> Result<()> {
        if !folder.is_dir() {
            return Err(Error::NotAFolder { path: folder.to_owned() });
        }
        write_atomically(&folder.join("report.json"), self.to_json().as_bytes())?;
        Ok(write_atomically(&folder.join("report.html"), html(self, pictures).as_bytes())?)
    }
}
