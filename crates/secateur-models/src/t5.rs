//! stub
use crate::error::Result;
use candle_core::Tensor;
use std::path::Path;
pub struct T5Encoder;
impl T5Encoder {
    pub fn open(_: &Path, _: Option<&str>) -> Result<Self> {
        Ok(Self)
    }
    pub fn forward(&self, x: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        Ok(x.clone())
    }
}
