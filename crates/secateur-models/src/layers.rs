//! Layers that several families, autoencoders and encoders share.

pub(crate) mod attention;
pub(crate) mod chain;
pub(crate) mod embedder;
pub(crate) mod feed_forward;
pub(crate) mod modulation;
pub(crate) mod norm;
pub(crate) mod patches;
pub(crate) mod pixel_attention;
pub(crate) mod resnet;
pub(crate) mod transformer_block;

pub(crate) use attention::{Attention, Heads, stream};
pub(crate) use chain::Chain;
pub(crate) use embedder::{Embedder, Sinusoids};
pub(crate) use feed_forward::{FeedForward, Gate};
pub(crate) use modulation::Modulation;
pub(crate) use norm::Norm;
pub(crate) use patches::{BySize, PatchEmbed, PatchTransformer, Positions, whole_grid};
pub(crate) use pixel_attention::PixelAttention;
pub(crate) use resnet::ResnetBlock;
pub(crate) use transformer_block::TransformerBlock;
