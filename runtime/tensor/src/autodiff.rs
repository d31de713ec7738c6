//! Gradients of any order, in reverse mode.
//!
//! A tracked tensor remembers the operation that made it. [`grad`] walks that history backwards, and each operation's derivative is
//! itself made of operations: with `create_graph` they are recorded, and the gradient can be differentiated again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use smallvec::SmallVec;

use crate::context::{self, Stop, recording};
use crate::op::{elementwise, shape};
use crate::tensor::{Node, check_devices};
use crate::{DType, Misuse, Tensor};

/// The gradients of one operation: one entry per input, `None` where it was not needed or is zero.
pub(crate) type Gradients = SmallVec<[Option<Contribution>; 3]>;

/// What one operation adds to the gradient of one of its inputs.
pub(crate) enum Contribution {
    /// A gradient of the input's shape.
    Whole(Tensor),
    /// A gradient of the elements from `start` on along `axis`; that of all others is zero. A tensor that is cut into slices gets its gradient by
    /// putting such parts together, where adding up whole ones would touch every element once for each slice.
    Part {
        /// The axis that was cut.
        axis: usize,
        /// Where the part begins.
        start: usize,
        /// Its gradient.
        value: Tensor,
    },
}

/// The values that an operation's derivative reads, beside the gradient that it is given. A history keeps no others, and without a value a tensor takes next to no
/// memory. Shapes, dtypes and devices are always there, and integers are not inputs of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// None: the operation is linear.
    Nothing,
    /// For the gradient by each input, those of the others: the operation is linear in each of them.
    Others,
    /// Those of all inputs.
    Inputs,
    /// That of the output.
    Output,
    /// Those of the inputs and the output.
    All,
}

impl Reads {
    /// Whether the value of input `k` of these is read.
    pub(crate) fn keeps(self, k: usize, inputs: &[&Tensor]) -> bool {
        match self {
            Self::Nothing | Self::Output => false,
            // The gradient by an input that is not tracked is never asked for.
            Self::Others => (0..inputs.len()).any(|other| other != k && inputs[other].is_tracked()),
            Self::Inputs | Self::All => true,
        }
    }

    /// Whether the value of the output is read.
    pub(crate) fn output(self) -> bool {
        matches!(self, Self::Output | Self::All)
    }
}

/// Where a tensor came from.
pub(crate) struct Origin {
    pub(crate) inputs: SmallVec<[Tensor; 3]>,
    pub(crate) reads: Reads,
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
    wanted: &'a Ids,
}

impl Step<'_> {
    /// The gradients, one closure per input; a closure runs only if that input leads to one that was asked for.
    pub(crate) fn gradients(&self, rules: &[&Rule<'_>]) -> Result<Gradients, Misuse> {
        rules
            .iter()
            .zip(self.inputs)
            .map(|(rule, input)| {
                let wanted = self.wanted.contains(&input.node.id);
                wanted.then(|| rule(self.gradient).map(Contribution::Whole)).transpose()
            })
            .collect()
    }

    /// Whether input `k` leads to one that was asked for.
    pub(crate) fn needs(&self, k: usize) -> bool {
        self.wanted.contains(&self.inputs[k].node.id)
    }
}

/// Turns recording in the context in force on or off and says what it was.
pub fn set_recording(enabled: bool) -> bool {
    context::set_recording(enabled)
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
    let outputs: Vec<Tensor> = outputs.iter().map(|&output| output.clone()).collect();
    gradients("autodiff.grad", outputs, inputs, output_gradients, create_graph)
}

/// As [`grad`] without `create_graph`, of outputs that nobody needs any more: what only their history keeps is freed on the way back.
///
/// # Errors
/// As [`grad`].
pub fn grad_and_release(
    outputs: Vec<Tensor>,
    inputs: &[&Tensor],
    output_gradients: &[&Tensor],
) -> Result<Vec<Tensor>, Misuse> {
    gradients("autodiff.grad-and-release", outputs, inputs, output_gradients, false)
}

fn gradients(
    operation: &'static str,
    outputs: Vec<Tensor>,
    inputs: &[&Tensor],
    output_gradients: &[&Tensor],
    create_graph: bool,
) -> Result<Vec<Tensor>, Misuse> {
    check(operation, &outputs, inputs, output_gradients)?;
    let (_scope, stop) = (RecordingScope::set(create_graph), Stop::current());
    let targets: Ids = inputs.iter().map(|input| input.node.id).collect();
    let wanted = nodes_between(&outputs, &targets, &stop);
    let mut found: HashMap<u64, Tensor, BuildHasherDefault<IdHasher>> = HashMap::default();
    // The largest number first: by the time a node is reached, everything computed from it has been.
    let mut pending: BTreeMap<u64, Pending> = BTreeMap::new();
    for (k, output) in outputs.iter().enumerate().filter(|(_, output)| wanted.contains(&output.node.id)) {
        let gradient = match output_gradients.get(k) {
            Some(&gradient) => gradient.clone(),
            None => Tensor::full(&output.device(), output.shape(), 1.0, output.dtype())?,
        };
        Pending::add(&mut pending, output, Contribution::Whole(gradient))?;
    }
    // From here on a node that nobody else has lives until the walk has passed it.
    drop(outputs);
    while let Some((id, entry)) = pending.pop_last() {
        stop.check();
        let (tensor, gradient) = entry.total()?;
        if let Some(origin) = &tensor.node.origin {
            let step = Step { inputs: &origin.inputs, output: &tensor, gradient: &gradient, wanted: &wanted };
            for (input, gradient) in origin.inputs.iter().zip((origin.derivative)(&step)?) {
                if let Some(gradient) = gradient {
                    Pending::add(&mut pending, input, gradient)?;
                }
            }
        }
        if targets.contains(&id) {
            found.insert(id, gradient);
        }
    }
    inputs
        .iter()
        .map(|input| match found.get(&input.node.id) {
            Some(gradient) => Ok(gradient.clone()),
            None => Tensor::full(&input.device(), input.shape(), 0.0, input.dtype()),
        })
        .collect()
}

/// The gradients of an operation through the operations that it is made of: `compose` computes its output from its inputs. For an operation with a kernel of
/// its own whose derivatives are asked for so rarely that they need none.
pub(crate) fn gradients_by_parts(
    step: &Step<'_>,
    compose: impl Fn(&[Tensor]) -> Result<Tensor, Misuse>,
) -> Result<Gradients, Misuse> {
    let create_graph = recording();
    // Aliases, so that a way from one input to another does not count.
    let aliases: Vec<Tensor> = step.inputs.iter().map(|input| alias(input, create_graph)).collect::<Result<_, _>>()?;
    let output = {
        let _scope = RecordingScope::set(true);
        compose(&aliases)?
    };
    let needed: Vec<usize> = (0..aliases.len()).filter(|&k| step.needs(k)).collect();
    let by: Vec<&Tensor> = needed.iter().map(|&k| &aliases[k]).collect();
    let mut found = gradients("autodiff.grad", vec![output], &by, &[step.gradient], create_graph)?.into_iter();
    Ok((0..aliases.len()).map(|k| if step.needs(k) { found.next().map(Contribution::Whole) } else { None }).collect())
}

/// The same value as a node of its own: recorded as an operation, or a leaf.
fn alias(a: &Tensor, recorded: bool) -> Result<Tensor, Misuse> {
    const NAME: &str = "autodiff.track";
    if !recorded {
        return a.as_leaf(NAME, a.is_tracked());
    }
    a.view(NAME, a.shape(), |step| step.gradients(&[&|g| Ok(g.clone())]))
}

fn check(
    operation: &'static str,
    outputs: &[Tensor],
    inputs: &[&Tensor],
    output_gradients: &[&Tensor],
) -> Result<(), Misuse> {
    for tensor in outputs.iter().chain(inputs.iter().copied()) {
        tensor.expect_dtype(operation, &[DType::Float32, DType::Float64])?;
    }
    if output_gradients.is_empty() {
        return Ok(());
    }
    if output_gradients.len() != outputs.len() {
        return Err(Misuse::new(
            operation,
            format!("{} output gradients for {} outputs", output_gradients.len(), outputs.len()),
        ));
    }
    for (output, gradient) in outputs.iter().zip(output_gradients) {
        if output.shape() != gradient.shape() || output.dtype() != gradient.dtype() {
            return Err(Misuse::new(operation, format!("an output is {output:?}, its gradient {gradient:?}")));
        }
        check_devices(operation, &output.node.device, &[gradient])?;
    }
    Ok(())
}

/// A tensor whose gradient is still being added up.
struct Pending {
    tensor: Tensor,
    whole: Option<Tensor>,
    /// Axis, start and gradient of parts.
    parts: Vec<(usize, usize, Tensor)>,
}

impl Pending {
    fn add(pending: &mut BTreeMap<u64, Self>, tensor: &Tensor, contribution: Contribution) -> Result<(), Misuse> {
        let entry = pending.entry(tensor.node.id).or_insert_with(|| Self {
            tensor: tensor.kept(false),
            whole: None,
            parts: Vec::new(),
        });
        match contribution {
            Contribution::Part { axis, start, value } => entry.parts.push((axis, start, value)),
            Contribution::Whole(gradient) => entry.whole = Some(added(entry.whole.take(), gradient)?),
        }
        Ok(())
    }

    /// The tensor and its whole gradient.
    fn total(self) -> Result<(Tensor, Tensor), Misuse> {
        let Self { tensor, mut whole, mut parts } = self;
        // Parts of one cut are put together; what overlaps, or is cut along another axis, comes with the next round.
        while let Some(&(axis, ..)) = parts.first() {
            parts.sort_by_key(|&(axis, start, _)| (axis, start));
            let (mut pieces, mut rest) = (Vec::new(), Vec::new());
            let mut end = 0;
            for (other, start, value) in parts {
                if other == axis && start >= end {
                    end = start + value.shape()[axis];
                    pieces.push((start, value));
                } else {
                    rest.push((other, start, value));
                }
            }
            whole = Some(added(whole, shape::place(&pieces, axis, tensor.shape())?)?);
            parts = rest;
        }
        let gradient = match whole {
            Some(gradient) => gradient,
            None => Tensor::full(&tensor.device(), tensor.shape(), 0.0, tensor.dtype())?,
        };
        Ok((tensor, gradient))
    }
}

fn added(sum: Option<Tensor>, gradient: Tensor) -> Result<Tensor, Misuse> {
    match sum {
        Some(sum) => elementwise::add(&sum, &gradient),
        None => Ok(gradient),
    }
}

/// Numbers of nodes. The engine counts them out, so that nobody can have them collide, and a multiplication spreads them.
type Ids = HashSet<u64, BuildHasherDefault<IdHasher>>;

#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write_u64(&mut self, id: u64) {
        // 2^64 over the golden ratio.
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a node's number is the only key");
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The nodes that lie on a path from an output back to a target; gradients of others are not computed.
fn nodes_between(outputs: &[Tensor], targets: &Ids, stop: &Stop) -> Ids {
    let mut reached: Vec<&Node> = Vec::new();
    let mut seen = Ids::default();
    let mut stack: Vec<&Node> = outputs.iter().map(|output| &*output.node).collect();
    while let Some(node) = stack.pop() {
        stop.check();
        if node.tracked && seen.insert(node.id) {
            reached.push(node);
            stack.extend(node.origin.iter().flat_map(|origin| origin.inputs.iter().map(|input| &*input.node)));
        }
    }
    // In the order of creation, so that inputs are decided before what was computed from them.
    reached.sort_unstable_by_key(|node| node.id);
    // It has grown to the size.
    let mut wanted = seen;
    wanted.clear();
    for node in reached {
        let leads = |origin: &Origin| origin.inputs.iter().any(|input| wanted.contains(&input.node.id));
        if targets.contains(&node.id) || node.origin.as_ref().is_some_and(leads) {
            wanted.insert(node.id);
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::context::Context;
    use crate::op::elementwise::{add_scalar, exp, multiply, sin};

    #[test]
    fn a_history_keeps_the_values_that_derivatives_read_and_no_others() -> Result<(), Misuse> {
        const COUNT: usize = 10_000;
        const VALUE: usize = COUNT * 8;
        let context = Context::new(usize::MAX, f64::INFINITY);
        let _entered = context.enter();
        let x = track(&Tensor::full(&Device::cpu(), &[COUNT], 0.5, DType::Float64)?)?;
        type Chain = fn(&Tensor) -> Result<Tensor, Misuse>;
        // What is made of `x`, the values that stay beside that of the result, and the derivative at 0.5.
        let chains: [(Chain, usize, f64); 5] = [
            (|x| add_scalar(&add_scalar(x, 1.0)?, 2.0), 0, 1.0),
            (|x| add_scalar(&exp(&add_scalar(x, 1.0)?)?, 2.0), 1, 1.5_f64.exp()),
            (|x| add_scalar(&sin(&add_scalar(x, 1.0)?)?, 2.0), 1, 1.5_f64.cos()),
            // The other operand is no variable, so the derivative reads it alone.
            (|x| multiply(&add_scalar(x, 1.0)?, &add_scalar(&detach(x)?, 2.0)?), 1, 2.5),
            (|x| multiply(&add_scalar(x, 1.0)?, &add_scalar(x, 2.0)?), 2, 4.0),
        ];
        for (k, (chain, kept, slope)) in chains.into_iter().enumerate() {
            let before = context.quota().used();
            let result = chain(&x)?;
            let values = (context.quota().used() - before) / VALUE;
            assert_eq!(values, 1 + kept, "chain {k}");
            let gradient = grad(&[&result], &[&x], &[], false)?.remove(0).read_float64()?;
            assert!(gradient.iter().all(|g| (g - slope).abs() < 1e-12 * slope.abs()), "chain {k}: {}", gradient[0]);
        }
        Ok(())
    }

    #[test]
    fn what_is_given_away_is_freed_while_gradients_are_found() -> Result<(), Misuse> {
        const COUNT: usize = 10_000;
        const STEPS: usize = 30;
        let run = |release: bool| -> Result<(usize, Vec<f64>), Misuse> {
            let context = Context::new(usize::MAX, f64::INFINITY);
            let _entered = context.enter();
            let x = track(&Tensor::full(&Device::cpu(), &[COUNT], 0.5, DType::Float64)?)?;
            let slope = {
                let y = (0..STEPS).try_fold(x.clone(), |a, _| sin(&a))?;
                grad(&[&y], &[&x], &[], true)?.remove(0)
            };
            let loss = multiply(&slope, &slope)?;
            drop(slope);
            let found = match release {
                true => grad_and_release(vec![loss], &[&x], &[])?,
                false => grad(&[&loss], &[&x], &[], false)?,
            };
            Ok((context.quota().peak() / (COUNT * 8), found[0].read_float64()?))
        };
        let ((kept, expected), (released, found)) = (run(false)?, run(true)?);
        assert_eq!(found, expected);
        // The gradients by what the way there kept wait until the way back of the way back has been walked, of which nothing is left by then.
        assert!(released + STEPS / 2 < kept, "{released} and {kept} values");
        Ok(())
    }
}
