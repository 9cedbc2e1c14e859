//! The device layer over a fake library: who owns what, what failures become, what is called when.

mod compilers;
mod errors;
mod fake;
mod gemm;
mod launches;
mod ownership;
mod prebuilt;
