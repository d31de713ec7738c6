//! The types of elements.

use std::fmt;

use burn_backend::{BoolStore, DType as BurnDType};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 single precision.
    Float32,
    /// IEEE 754 double precision.
    Float64,
    /// 32-bit signed integers.
    Int32,
    /// 64-bit signed integers, the dtype of indices.
    Int64,
    /// True and false, one byte each.
    Boolean,
}

impl DType {
    /// The size of an element in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::Float32 | Self::Int32 => 4,
            Self::Float64 | Self::Int64 => 8,
            Self::Boolean => 1,
        }
    }

    /// Whether it is `Float32` or `Float64`: the ones that can be differentiated.
    pub fn is_float(self) -> bool {
        matches!(self, Self::Float32 | Self::Float64)
    }

    /// Whether it is `Int32` or `Int64`.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::Int32 | Self::Int64)
    }

    pub(crate) fn burn(self) -> BurnDType {
        match self {
            Self::Float32 => BurnDType::F32,
            Self::Float64 => BurnDType::F64,
            Self::Int32 => BurnDType::I32,
            Self::Int64 => BurnDType::I64,
            Self::Boolean => BurnDType::Bool(BoolStore::Native),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Float32 => "float32",
            Self::Float64 => "float64",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Boolean => "boolean",
        })
    }
}
