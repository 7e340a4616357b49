//! Settings of all jobs. They are options of the command line, keys of a recipe, and fields for
//! callers of the library. `None`, or an empty list, is the default.

mod number;
mod text;
mod device;
mod model;
mod methods;
mod commands;

pub use commands::{
    BenchSettings, CompareSettings, ConvertSettings, ExportSettings, GenerateSettings,
    InspectSettings,
};
pub use device::{DeviceSettings, DtypeName};
pub use methods::{
    CalibrationSettings, GroupName, LossName, ModuleName, NeuronsName, PruneSettings, RowsName,
    RuleName, SkipSettings, SlimSettings,
};
pub use model::{
    ModelSettings, PromptSettings, SamplingSettings, ScoreSettings, SharedSettings,
    SkippingSettings,
};
pub use number::{Count, Number, Positive};
pub use text::options;
