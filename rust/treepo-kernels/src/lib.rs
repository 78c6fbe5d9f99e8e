//! CPU kernels of treepo: what a step computes, from attention to the drawn token.
//!
//! Kernels work on raw buffers that the caller owns and describe them in plain structs. Each one is
//! written once over [`simd::Simd`] and compiled for every instruction set; [`simd::Level`] is
//! detected at run time. Work is spread by a [`team::Team`], on the `OpenMP` threads that torch
//! already has or on a parked pool.
//!
//! Every reduction runs in an order that is fixed by the position of a token and of a vocabulary
//! entry: neither the other rows of a step, nor its chunking, nor the number of threads changes a
//! bit of a result. Two instruction sets may differ in bits.
//!
//! This is the only crate of the workspace with unsafe code.

#![allow(unsafe_code, reason = "raw buffers, SIMD intrinsics and a C function of OpenMP")]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod attention;
pub mod decoder;
pub mod element;
pub mod elementwise;
pub mod linear;
pub mod math;
pub mod sampler;
pub mod simd;
pub mod team;
