//! The operations on tensors: each looks up its operands and calls `kilnbox-tensor`.

use kilnbox_tensor::Tensor;
use kilnbox_tensor::op::{elementwise, index, linalg, neural, reduce, segment, shape, spherical};
use wasmtime::Result;
use wasmtime::component::Resource;

use super::bindings::kilnbox::architecture as contract;
use super::{State, guarded, sizes};

type Handle = Resource<Tensor>;

/// Functions of one tensor.
macro_rules! unary {
    ($module:ident: $($name:ident),+) => {$(
        fn $name(&mut self, a: Handle) -> Result<Handle> {
            self.operate(|state| Ok($module::$name(state.tensor(&a)?)))
        }
    )+};
}

/// Functions of two tensors.
macro_rules! binary {
    ($module:ident: $($name:ident),+) => {$(
        fn $name(&mut self, a: Handle, b: Handle) -> Result<Handle> {
            self.operate(|state| Ok($module::$name(state.tensor(&a)?, state.tensor(&b)?)))
        }
    )+};
}

impl contract::elementwise::Host for State {
    unary!(elementwise: negative, reciprocal, absolute, sign, exp, log, sqrt, sin, cos, tanh, erf, sigmoid, silu, is_finite, logical_not);
    binary!(elementwise: add, subtract, multiply, divide, maximum, minimum, equal, less, less_equal, logical_and, logical_or);

    fn add_scalar(&mut self, a: Handle, scalar: f64) -> Result<Handle> {
        self.operate(|state| Ok(elementwise::add_scalar(state.tensor(&a)?, scalar)))
    }

    fn multiply_scalar(&mut self, a: Handle, scalar: f64) -> Result<Handle> {
        self.operate(|state| Ok(elementwise::multiply_scalar(state.tensor(&a)?, scalar)))
    }

    fn power_scalar(&mut self, a: Handle, exponent: f64) -> Result<Handle> {
        self.operate(|state| Ok(elementwise::power_scalar(state.tensor(&a)?, exponent)))
    }

    fn clamp(&mut self, a: Handle, low: f64, high: f64) -> Result<Handle> {
        self.operate(|state| Ok(elementwise::clamp(state.tensor(&a)?, low, high)))
    }

    fn where_(&mut self, condition: Handle, a: Handle, b: Handle) -> Result<Handle> {
        self.operate(|state| Ok(elementwise::where_(state.tensor(&condition)?, state.tensor(&a)?, state.tensor(&b)?)))
    }
}

impl contract::reduce::Host for State {
    unary!(reduce: all, any);

    fn sum(&mut self, a: Handle, axes: Vec<u32>, keep_axes: bool) -> Result<Handle> {
        self.operate(|state| Ok(reduce::sum(state.tensor(&a)?, &sizes(&axes), keep_axes)))
    }

    fn mean(&mut self, a: Handle, axes: Vec<u32>, keep_axes: bool) -> Result<Handle> {
        self.operate(|state| Ok(reduce::mean(state.tensor(&a)?, &sizes(&axes), keep_axes)))
    }

    fn maximum(&mut self, a: Handle, axis: u32, keep_axes: bool) -> Result<Handle> {
        self.operate(|state| Ok(reduce::maximum(state.tensor(&a)?, axis as usize, keep_axes)))
    }

    fn minimum(&mut self, a: Handle, axis: u32, keep_axes: bool) -> Result<Handle> {
        self.operate(|state| Ok(reduce::minimum(state.tensor(&a)?, axis as usize, keep_axes)))
    }
}

impl contract::shape::Host for State {
    fn reshape(&mut self, a: Handle, to: Vec<u32>) -> Result<Handle> {
        self.operate(|state| Ok(shape::reshape(state.tensor(&a)?, &sizes(&to))))
    }

    fn permute(&mut self, a: Handle, axes: Vec<u32>) -> Result<Handle> {
        self.operate(|state| Ok(shape::permute(state.tensor(&a)?, &sizes(&axes))))
    }

    fn broadcast_to(&mut self, a: Handle, to: Vec<u32>) -> Result<Handle> {
        self.operate(|state| Ok(shape::broadcast_to(state.tensor(&a)?, &sizes(&to))))
    }

    fn concatenate(&mut self, tensors: Vec<Handle>, axis: u32) -> Result<Handle> {
        self.operate(|state| Ok(shape::concatenate(&state.tensors(&tensors)?, axis as usize)))
    }

    fn slice(&mut self, a: Handle, axis: u32, start: u32, end: u32) -> Result<Handle> {
        self.operate(|state| Ok(shape::slice(state.tensor(&a)?, axis as usize, start as usize, end as usize)))
    }
}

impl contract::index::Host for State {
    fn select(&mut self, a: Handle, axis: u32, indices: Handle) -> Result<Handle> {
        self.operate(|state| Ok(index::select(state.tensor(&a)?, axis as usize, state.tensor(&indices)?)))
    }

    fn index_add(&mut self, a: Handle, axis: u32, indices: Handle, size: u32) -> Result<Handle> {
        self.operate(|state| {
            Ok(index::index_add(state.tensor(&a)?, axis as usize, state.tensor(&indices)?, size as usize))
        })
    }

    fn gather(&mut self, a: Handle, axis: u32, indices: Handle) -> Result<Handle> {
        self.operate(|state| Ok(index::gather(state.tensor(&a)?, axis as usize, state.tensor(&indices)?)))
    }

    fn scatter_add(&mut self, a: Handle, axis: u32, indices: Handle, size: u32) -> Result<Handle> {
        self.operate(|state| {
            Ok(index::scatter_add(state.tensor(&a)?, axis as usize, state.tensor(&indices)?, size as usize))
        })
    }
}

impl contract::segment::Host for State {
    fn outer_sum(&mut self, left: Handle, right: Handle, segments: Handle, count: u32) -> Result<Handle> {
        self.operate(|state| {
            let (left, right) = (state.tensor(&left)?, state.tensor(&right)?);
            Ok(segment::outer_sum(left, right, state.tensor(&segments)?, count as usize))
        })
    }

    fn contract_left(&mut self, left: Handle, blocks: Handle, segments: Handle) -> Result<Handle> {
        self.operate(|state| {
            Ok(segment::contract_left(state.tensor(&left)?, state.tensor(&blocks)?, state.tensor(&segments)?))
        })
    }

    fn contract_right(&mut self, right: Handle, blocks: Handle, segments: Handle) -> Result<Handle> {
        self.operate(|state| {
            Ok(segment::contract_right(state.tensor(&right)?, state.tensor(&blocks)?, state.tensor(&segments)?))
        })
    }
}

impl contract::linalg::Host for State {
    binary!(linalg: matmul);

    fn solve(&mut self, a: Handle, b: Handle) -> Result<std::result::Result<Handle, contract::linalg::LinalgError>> {
        use contract::linalg::LinalgError;
        match guarded(|| Ok(linalg::solve(self.tensor(&a)?, self.tensor(&b)?)?))? {
            Ok(solution) => Ok(Ok(self.hand_out(solution)?)),
            Err(linalg::SolveError::Singular(matrix)) => Ok(Err(LinalgError::Singular(matrix as u32))),
            Err(linalg::SolveError::NotFinite) => Ok(Err(LinalgError::NotFinite)),
        }
    }
}

impl contract::neural::Host for State {
    unary!(neural: gated_linear_unit);

    fn softmax(&mut self, a: Handle, axis: u32) -> Result<Handle> {
        self.operate(|state| Ok(neural::softmax(state.tensor(&a)?, axis as usize)))
    }

    fn linear(&mut self, a: Handle, weight: Handle, bias: Option<Handle>) -> Result<Handle> {
        self.operate(|state| {
            let bias = bias.as_ref().map(|bias| state.tensor(bias)).transpose()?;
            Ok(neural::linear(state.tensor(&a)?, state.tensor(&weight)?, bias))
        })
    }

    fn attention(
        &mut self,
        queries: Handle,
        keys: Handle,
        values: Handle,
        bias: Handle,
        segments: Handle,
        count: u32,
        heads: u32,
        scale: f64,
    ) -> Result<Handle> {
        self.operate(|state| {
            Ok(neural::attention(
                state.tensor(&queries)?,
                state.tensor(&keys)?,
                state.tensor(&values)?,
                state.tensor(&bias)?,
                state.tensor(&segments)?,
                count as usize,
                heads as usize,
                scale,
            ))
        })
    }

    fn layer_norm(&mut self, a: Handle, epsilon: f64) -> Result<Handle> {
        self.operate(|state| Ok(neural::layer_norm(state.tensor(&a)?, epsilon)))
    }

    fn rms_norm(&mut self, a: Handle, epsilon: f64) -> Result<Handle> {
        self.operate(|state| Ok(neural::rms_norm(state.tensor(&a)?, epsilon)))
    }
}

impl contract::spherical::Host for State {
    fn solid_harmonics(&mut self, vectors: Handle, max_degree: u32) -> Result<Handle> {
        self.operate(|state| Ok(spherical::solid_harmonics(state.tensor(&vectors)?, max_degree as usize)))
    }

    fn piecewise_polynomial(&mut self, x: Handle, coefficients: Handle, lower: f64, upper: f64) -> Result<Handle> {
        self.operate(|state| {
            Ok(spherical::piecewise_polynomial(state.tensor(&x)?, state.tensor(&coefficients)?, lower, upper))
        })
    }
}
