//! Tensors with automatic differentiation of any order, over burn's backends.
//!
//! A [`Tensor`] is a handle to an immutable array on a [`Device`] chosen at run time, of any [`DType`] and of rank 0 to 8. Operations live in
//! [`op`], one module per interface of the contract and one place per operation: its *check* (shapes, dtypes, index ranges, memory), its *run*
//! (a burn kernel, or one of ours where burn's is slow or sums in an order that depends on threads), and its *derivative*,
//! written in terms of other operations, so that a gradient can be differentiated again.
//!
//! ```
//! use kilnbox_tensor::{Device, DType, Tensor, autodiff, op::{elementwise, reduce}};
//! # fn main() -> Result<(), kilnbox_tensor::Misuse> {
//! let x = autodiff::track(&Tensor::from_float64(&Device::cpu(), &[2], &[1.0, 3.0], DType::Float64)?)?;
//! let energy = reduce::sum(&elementwise::multiply(&x, &elementwise::multiply(&x, &x)?)?, &[], false)?;
//! let slope = &autodiff::grad(&[&energy], &[&x], &[], true)?[0];
//! assert_eq!(slope.read_float64()?, [3.0, 27.0]);
//! let curvature = &autodiff::grad(&[slope], &[&x], &[], false)?[0];
//! assert_eq!(curvature.read_float64()?, [6.0, 18.0]);
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here panics on what a caller can send: misuse is a [`Misuse`], found before burn is called. A run that is stopped from outside ends its
//! operations by unwinding, see [`context`].

pub mod allocator;
pub mod autodiff;
pub mod context;
mod device;
mod dtype;
mod indices;
#[cfg(target_arch = "x86_64")]
mod kept;
mod kernel;
pub mod memory;
mod misuse;
pub mod op;
mod promise;
pub mod random;
mod tensor;

pub use device::{Device, DeviceError};
pub use dtype::DType;
pub use misuse::Misuse;
pub use tensor::{MAX_RANK, Tensor};
