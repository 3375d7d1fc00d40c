//! The arithmetic of training on AVX-512 and AVX2: activations channel by channel.
//!
//! A *tile* holds one sequence's activations as `[channels][width]`, `width` its tokens rounded up to sixteen and the
//! columns past its last token zero. A row of a tile is one channel at all tokens, so that a weight matrix's nonzero
//! weights each become a scaled addition of whole rows ([`product`]), and whatever goes from channel to channel of one
//! token (norms, AbsTopK, attention) is done for sixteen tokens at a time without any sum across a register.
//!
//! Everything here wants a [`processor::Processor`], which only exists where the processor has the instructions. The
//! operations of the modules beside this one are the portable version and the oracle of the tests.

pub mod attention;
pub mod buffers;
pub mod elementwise;
pub mod layout;
pub mod norm;
pub mod outer;
pub mod processor;
pub mod product;
pub mod top_k;
pub mod transpose;
