//! Row kernels and differentiable operations on candle tensors.
//!
//! Everything a transformer does to numbers lives here; nothing here knows what a model is. Each operation
//! is written for float32 on the CPU, one row at a time, in an order that does not depend on how many rows
//! there are: a row's result is the same alone and in a batch. On other devices the same functions are
//! launches of [`kernels`], or, where gradients are asked for or there is no kernel, composed of candle's own operations;
//! the CPU version is the oracle of both.
//!
//! Shapes: a *row* is one token; tensors are `[rows, channels]` and contiguous unless stated otherwise.

pub mod abs_top_k;
pub mod activation;
pub mod attention;
pub mod columns;
pub mod correlation;
pub mod dense_product;
pub mod device;
pub mod exponential;
pub mod kernels;
pub mod lanes;
pub mod linear;
pub mod loss;
pub mod norm;
pub mod parts;
pub mod rotary;
pub mod row_updates;
pub mod rows;
pub mod softmax;
pub mod student_loss;
pub mod tiles;
