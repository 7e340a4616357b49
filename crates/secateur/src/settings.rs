//! Settings of all jobs: what the command line takes as options, a recipe as keys, and a caller of
//! the library as fields. `None`, or an empty list, is the default.

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
