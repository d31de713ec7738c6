//! `tensor`, `autodiff`, `optimizer` and `random`.

use kilnbox_tensor::{Misuse, Tensor, autodiff, op};
use wasmtime::Result;
use wasmtime::component::Resource;

use super::bindings::kilnbox::architecture as contract;
use super::{State, guarded, sizes};
use contract::tensor::Dtype;

type Handle = Resource<Tensor>;

impl contract::tensor::Host for State {
    fn from_float32(&mut self, shape: Vec<u32>, values: Vec<f32>) -> Result<Handle> {
        self.operate(|state| Ok(Tensor::from_float32(&state.device, &sizes(&shape), &values)))
    }

    fn from_float64(&mut self, shape: Vec<u32>, values: Vec<f64>, dtype: Dtype) -> Result<Handle> {
        self.operate(|state| Ok(Tensor::from_float64(&state.device, &sizes(&shape), &values, dtype.into())))
    }

    fn from_int64(&mut self, shape: Vec<u32>, values: Vec<i64>) -> Result<Handle> {
        self.operate(|state| Ok(Tensor::from_int64(&state.device, &sizes(&shape), &values)))
    }

    fn from_boolean(&mut self, shape: Vec<u32>, values: Vec<bool>) -> Result<Handle> {
        self.operate(|state| Ok(Tensor::from_boolean(&state.device, &sizes(&shape), &values)))
    }

    fn full(&mut self, shape: Vec<u32>, value: f64, dtype: Dtype) -> Result<Handle> {
        self.operate(|state| Ok(Tensor::full(&state.device, &sizes(&shape), value, dtype.into())))
    }

    fn arange(&mut self, count: u32) -> Result<Handle> {
        self.operate(|state| Ok(Tensor::arange(&state.device, count as usize)))
    }

    fn cast(&mut self, a: Handle, dtype: Dtype) -> Result<Handle> {
        self.operate(|state| Ok(op::cast(state.tensor(&a)?, dtype.into())))
    }
}

impl State {
    /// All elements of a tensor, which take `size` bytes each in the guest's memory.
    fn read<T>(
        &self,
        tensor: &Handle,
        size: usize,
        read: fn(&Tensor) -> std::result::Result<Vec<T>, Misuse>,
    ) -> Result<Vec<T>> {
        guarded(|| {
            let tensor = self.tensor(tensor)?;
            self.check_copy(tensor.count().saturating_mul(size))?;
            Ok(read(tensor)?)
        })
    }
}

impl contract::tensor::HostTensor for State {
    fn shape(&mut self, tensor: Handle) -> Result<Vec<u32>> {
        Ok(self.tensor(&tensor)?.shape().iter().map(|&size| size as u32).collect())
    }

    fn dtype(&mut self, tensor: Handle) -> Result<Dtype> {
        Ok(self.tensor(&tensor)?.dtype().into())
    }

    fn share(&mut self, tensor: Handle) -> Result<Handle> {
        let shared = self.tensor(&tensor)?.clone();
        self.hand_out(shared)
    }

    fn read_float32(&mut self, tensor: Handle) -> Result<Vec<f32>> {
        self.read(&tensor, 4, Tensor::read_float32)
    }

    fn read_float64(&mut self, tensor: Handle) -> Result<Vec<f64>> {
        self.read(&tensor, 8, Tensor::read_float64)
    }

    fn read_int64(&mut self, tensor: Handle) -> Result<Vec<i64>> {
        self.read(&tensor, 8, Tensor::read_int64)
    }

    fn read_boolean(&mut self, tensor: Handle) -> Result<Vec<bool>> {
        self.read(&tensor, 1, Tensor::read_boolean)
    }

    fn drop(&mut self, tensor: Handle) -> Result<()> {
        self.handles.take(tensor)?;
        Ok(())
    }
}

impl contract::autodiff::Host for State {
    fn track(&mut self, a: Handle) -> Result<Handle> {
        self.operate(|state| Ok(autodiff::track(state.tensor(&a)?)))
    }

    fn detach(&mut self, a: Handle) -> Result<Handle> {
        self.operate(|state| Ok(autodiff::detach(state.tensor(&a)?)))
    }

    fn is_tracked(&mut self, a: Handle) -> Result<bool> {
        Ok(self.tensor(&a)?.is_tracked())
    }

    fn grad(
        &mut self,
        outputs: Vec<Handle>,
        inputs: Vec<Handle>,
        output_gradients: Vec<Handle>,
        create_graph: bool,
    ) -> Result<Vec<Handle>> {
        let gradients = guarded(|| {
            let (outputs, inputs) = (self.tensors(&outputs)?, self.tensors(&inputs)?);
            Ok(autodiff::grad(&outputs, &inputs, &self.tensors(&output_gradients)?, create_graph)?)
        })?;
        gradients.into_iter().map(|gradient| self.hand_out(gradient)).collect()
    }

    fn grad_and_release(
        &mut self,
        outputs: Vec<Handle>,
        inputs: Vec<Handle>,
        output_gradients: Vec<Handle>,
    ) -> Result<Vec<Handle>> {
        let outputs = outputs.into_iter().map(|output| self.handles.take(output)).collect::<Result<_, _>>()?;
        let gradients = guarded(|| {
            Ok(autodiff::grad_and_release(outputs, &self.tensors(&inputs)?, &self.tensors(&output_gradients)?)?)
        })?;
        gradients.into_iter().map(|gradient| self.hand_out(gradient)).collect()
    }

    fn set_recording(&mut self, enabled: bool) -> Result<bool> {
        Ok(autodiff::set_recording(enabled))
    }
}

impl contract::optimizer::Host for State {
    fn adam(
        &mut self,
        parameters: Vec<Handle>,
        gradients: Vec<Handle>,
        first_moments: Vec<Handle>,
        second_moments: Vec<Handle>,
        options: contract::optimizer::AdamOptions,
    ) -> Result<Vec<contract::optimizer::AdamState>> {
        let options = op::optimizer::AdamOptions {
            learning_rate: options.learning_rate,
            beta1: options.beta1,
            beta2: options.beta2,
            epsilon: options.epsilon,
            weight_decay: options.weight_decay,
            decoupled: options.decoupled,
            step: options.step,
        };
        let states = guarded(|| {
            Ok(op::optimizer::adam(
                &self.tensors(&parameters)?,
                &self.tensors(&gradients)?,
                &self.tensors(&first_moments)?,
                &self.tensors(&second_moments)?,
                &options,
            )?)
        })?;
        states
            .into_iter()
            .map(|state| {
                Ok(contract::optimizer::AdamState {
                    parameter: self.hand_out(state.parameter)?,
                    first_moment: self.hand_out(state.first_moment)?,
                    second_moment: self.hand_out(state.second_moment)?,
                })
            })
            .collect()
    }
}

impl contract::random::Host for State {
    fn uniform(&mut self, shape: Vec<u32>, low: f64, high: f64, dtype: Dtype) -> Result<Handle> {
        let tensor = guarded(|| Ok(self.random.uniform(&self.device, &sizes(&shape), low, high, dtype.into())?))?;
        self.hand_out(tensor)
    }

    fn normal(&mut self, shape: Vec<u32>, mean: f64, standard_deviation: f64, dtype: Dtype) -> Result<Handle> {
        let tensor = guarded(|| {
            Ok(self.random.normal(&self.device, &sizes(&shape), mean, standard_deviation, dtype.into())?)
        })?;
        self.hand_out(tensor)
    }

    fn permutation(&mut self, count: u32) -> Result<Vec<u32>> {
        self.check_copy((count as usize).saturating_mul(4))?;
        guarded(|| Ok(self.random.permutation(count)))
    }

    fn state(&mut self) -> Result<Vec<u8>> {
        Ok(self.random.state())
    }

    fn set_state(&mut self, state: Vec<u8>) -> Result<std::result::Result<(), String>> {
        Ok(self.random.set_state(&state))
    }
}
