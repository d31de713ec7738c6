//! Gradients of any order, in reverse mode.
//!
//! A tracked tensor remembers the operation that made it. [`grad`] walks that history backwards, and each operation's derivative is
//! itself made of operations: with `create_graph` they are recorded, and the gradient can be differentiated again.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};

use smallvec::SmallVec;

use crate::op::elementwise;
use crate::tensor::Node;
use crate::{DType, Misuse, Tensor};

/// The gradients of one operation: one entry per input, `None` where it was not needed or is zero.
pub(crate) type Gradients = SmallVec<[Option<Tensor>; 3]>;

/// Where a tensor came from.
pub(crate) struct Origin {
    pub(crate) inputs: SmallVec<[Tensor; 3]>,
    pub(crate) derivative: Box<dyn Derivative>,
}

/// How an operation's gradient flows to its inputs.
pub(crate) trait Derivative: Fn(&Step<'_>) -> Result<Gradients, Misuse> + Send + Sync {}

impl<F: Fn(&Step<'_>) -> Result<Gradients, Misuse> + Send + Sync> Derivative for F {}

/// From the gradient of an output to that of one input.
type Rule<'a> = dyn Fn(&Tensor) -> Result<Tensor, Misuse> + 'a;

/// One operation on the way back.
pub(crate) struct Step<'a> {
    pub(crate) inputs: &'a [Tensor],
    pub(crate) output: &'a Tensor,
    pub(crate) gradient: &'a Tensor,
    wanted: &'a HashSet<u64>,
}

impl Step<'_> {
    /// The gradients, one closure per input; a closure runs only if that input leads to one that was asked for.
    pub(crate) fn gradients(&self, rules: &[&Rule<'_>]) -> Result<Gradients, Misuse> {
        rules
            .iter()
            .zip(self.inputs)
            .map(|(rule, input)| self.wanted.contains(&input.0.id).then(|| rule(self.gradient)).transpose())
            .collect()
    }

    /// Whether input `k` leads to one that was asked for.
    pub(crate) fn needs(&self, k: usize) -> bool {
        self.wanted.contains(&self.inputs[k].0.id)
    }
}

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(true) };
}

/// Turns recording on this thread on or off and says what it was.
pub fn set_recording(enabled: bool) -> bool {
    RECORDING.replace(enabled)
}

pub(crate) fn recording() -> bool {
    RECORDING.get()
}

/// Restores recording when a scope ends, however it ends.
struct RecordingScope(bool);

impl RecordingScope {
    fn set(enabled: bool) -> Self {
        Self(set_recording(enabled))
    }
}

impl Drop for RecordingScope {
    fn drop(&mut self) {
        set_recording(self.0);
    }
}

/// A leaf with `a`'s values, to take gradients by.
///
/// # Errors
/// It is not floating-point.
pub fn track(a: &Tensor) -> Result<Tensor, Misuse> {
    a.expect_dtype("autodiff.track", &[DType::Float32, DType::Float64])?;
    a.as_leaf("autodiff.track", true)
}

/// `a`'s values without its history.
///
/// # Errors
/// The quota is exceeded.
pub fn detach(a: &Tensor) -> Result<Tensor, Misuse> {
    a.as_leaf("autodiff.detach", false)
}

/// The gradients of `sum_k <outputs[k], output_gradients[k]>` by each of `inputs`, of the inputs' shapes, zero where nothing connects. Empty
/// `output_gradients` means ones. With `create_graph` the gradients are recorded and can be differentiated again.
///
/// # Errors
/// An output or input is not floating-point, or an output gradient does not have its output's shape and dtype.
pub fn grad(
    outputs: &[&Tensor],
    inputs: &[&Tensor],
    output_gradients: &[&Tensor],
    create_graph: bool,
) -> Result<Vec<Tensor>, Misuse> {
    check(outputs, inputs, output_gradients)?;
    let _scope = RecordingScope::set(create_graph);
    let wanted = nodes_between(outputs, inputs);
    let targets: HashSet<u64> = inputs.iter().map(|input| input.0.id).collect();
    let mut found: HashMap<u64, Tensor> = HashMap::new();
    // The largest number first: by the time a node is reached, everything computed from it has been.
    let mut pending: BTreeMap<u64, (Tensor, Tensor)> = BTreeMap::new();
    for (k, &output) in outputs.iter().enumerate().filter(|(_, output)| wanted.contains(&output.0.id)) {
        let gradient = match output_gradients.get(k) {
            Some(&gradient) => gradient.clone(),
            None => Tensor::full(&output.device(), output.shape(), 1.0, output.dtype())?,
        };
        accumulate(&mut pending, output, gradient)?;
    }
    while let Some((id, (tensor, gradient))) = pending.pop_last() {
        if let Some(origin) = &tensor.0.origin {
            let step = Step { inputs: &origin.inputs, output: &tensor, gradient: &gradient, wanted: &wanted };
            for (input, gradient) in origin.inputs.iter().zip((origin.derivative)(&step)?) {
                if let Some(gradient) = gradient {
                    accumulate(&mut pending, input, gradient)?;
                }
            }
        }
        if targets.contains(&id) {
            found.insert(id, gradient);
        }
    }
    inputs
        .iter()
        .map(|input| match found.get(&input.0.id) {
            Some(gradient) => Ok(gradient.clone()),
            None => Tensor::full(&input.device(), input.shape(), 0.0, input.dtype()),
        })
        .collect()
}

fn check(outputs: &[&Tensor], inputs: &[&Tensor], output_gradients: &[&Tensor]) -> Result<(), Misuse> {
    const NAME: &str = "autodiff.grad";
    for tensor in outputs.iter().chain(inputs) {
        tensor.expect_dtype(NAME, &[DType::Float32, DType::Float64])?;
    }
    if output_gradients.is_empty() {
        return Ok(());
    }
    if output_gradients.len() != outputs.len() {
        return Err(Misuse::new(
            NAME,
            format!("{} output gradients for {} outputs", output_gradients.len(), outputs.len()),
        ));
    }
    for (output, gradient) in outputs.iter().zip(output_gradients) {
        if output.shape() != gradient.shape() || output.dtype() != gradient.dtype() {
            return Err(Misuse::new(NAME, format!("an output is {output:?}, its gradient {gradient:?}")));
        }
    }
    Ok(())
}

fn accumulate(pending: &mut BTreeMap<u64, (Tensor, Tensor)>, tensor: &Tensor, gradient: Tensor) -> Result<(), Misuse> {
    let total = match pending.remove(&tensor.0.id) {
        Some((_, earlier)) => elementwise::add(&earlier, &gradient)?,
        None => gradient,
    };
    pending.insert(tensor.0.id, (tensor.clone(), total));
    Ok(())
}

/// The nodes that lie on a path from an output back to an input; gradients of others are not computed.
fn nodes_between(outputs: &[&Tensor], inputs: &[&Tensor]) -> HashSet<u64> {
    let mut reached: BTreeMap<u64, &Node> = BTreeMap::new();
    let mut stack: Vec<&Node> = outputs.iter().map(|output| &*output.0).collect();
    while let Some(node) = stack.pop() {
        if node.tracked && reached.insert(node.id, node).is_none() {
            stack.extend(node.origin.iter().flat_map(|origin| origin.inputs.iter().map(|input| &*input.0)));
        }
    }
    let targets: HashSet<u64> = inputs.iter().map(|input| input.0.id).collect();
    let mut wanted = HashSet::new();
    // In the order of creation, so that inputs are decided before what was computed from them.
    for (&id, node) in &reached {
        let leads = |origin: &Origin| origin.inputs.iter().any(|input| wanted.contains(&input.0.id));
        if targets.contains(&id) || node.origin.as_ref().is_some_and(leads) {
            wanted.insert(id);
        }
    }
    wanted
}
