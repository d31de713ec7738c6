//! The values that a guest has handles of.
//!
//! Most are tensors, which come and go by the hundred in each step. They lie side by side in a table of their own; in wasmtime's, which has everything else, each value has an
//! allocation.

use kilnbox_tensor::Tensor;
use slab::Slab;
use wasmtime::component::{Resource, ResourceTable, ResourceTableError};

type Result<T> = std::result::Result<T, ResourceTableError>;

/// All values of one guest, up to a limit.
pub(crate) struct Handles {
    tensors: Slab<Tensor>,
    others: ResourceTable,
    other_count: usize,
    most: usize,
}

/// What a guest may have a handle of.
pub(crate) trait Handled: Sized {
    /// Keeps it; to be called by [`Handles::push`], which knows that there is room.
    fn push(self, handles: &mut Handles) -> Result<Resource<Self>>;

    /// The value of a handle.
    fn get<'a>(handles: &'a Handles, handle: &Resource<Self>) -> Result<&'a Self>;

    /// The value of a handle that is given back.
    fn take(handles: &mut Handles, handle: Resource<Self>) -> Result<Self>;
}

/// What is handled that is no tensor.
pub(crate) trait Other: Send + 'static {}

impl Handles {
    /// None yet, and `most` at most.
    pub(crate) fn new(most: usize) -> Self {
        Self { tensors: Slab::new(), others: ResourceTable::new(), other_count: 0, most }
    }

    /// A handle for a value.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub(crate) fn push<T: Handled>(&mut self, value: T) -> Result<Resource<T>> {
        if self.tensors.len() + self.other_count >= self.most {
            return Err(ResourceTableError::Full);
        }
        value.push(self)
    }

    /// The value of a handle.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn get<T: Handled>(&self, handle: &Resource<T>) -> Result<&T> {
        T::get(self, handle)
    }

    /// The value of a handle, to be changed.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn get_mut<T: Other>(&mut self, handle: &Resource<T>) -> Result<&mut T> {
        self.others.get_mut(handle)
    }

    /// The value of a handle that is given back.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn take<T: Handled>(&mut self, handle: Resource<T>) -> Result<T> {
        T::take(self, handle)
    }
}

impl Handled for Tensor {
    fn push(self, handles: &mut Handles) -> Result<Resource<Self>> {
        let place = handles.tensors.vacant_entry();
        let number = u32::try_from(place.key()).map_err(|_| ResourceTableError::Full)?;
        place.insert(self);
        Ok(Resource::new_own(number))
    }

    fn get<'a>(handles: &'a Handles, handle: &Resource<Self>) -> Result<&'a Self> {
        handles.tensors.get(handle.rep() as usize).ok_or(ResourceTableError::NotPresent)
    }

    fn take(handles: &mut Handles, handle: Resource<Self>) -> Result<Self> {
        handles.tensors.try_remove(handle.rep() as usize).ok_or(ResourceTableError::NotPresent)
    }
}

impl<T: Other> Handled for T {
    fn push(self, handles: &mut Handles) -> Result<Resource<Self>> {
        let handle = handles.others.push(self)?;
        handles.other_count += 1;
        Ok(handle)
    }

    fn get<'a>(handles: &'a Handles, handle: &Resource<Self>) -> Result<&'a Self> {
        handles.others.get(handle)
    }

    fn take(handles: &mut Handles, handle: Resource<Self>) -> Result<Self> {
        let value = handles.others.delete(handle)?;
        handles.other_count -= 1;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kilnbox_tensor::Device;

    #[derive(Debug, PartialEq)]
    struct Thing(u32);

    impl Other for Thing {}

    #[test]
    fn handles_are_counted_together_and_their_numbers_used_again() {
        let mut handles = Handles::new(3);
        let tensor = |value: f32| Tensor::from_float32(&Device::cpu(), &[1], &[value]).expect("a tensor");
        let first = handles.push(tensor(1.0)).expect("the first of three");
        let thing = handles.push(Thing(2)).expect("the second");
        let third = handles.push(tensor(3.0)).expect("the third");
        assert!(handles.push(tensor(4.0)).is_err(), "a tensor beyond the limit");
        assert!(handles.push(Thing(4)).is_err(), "a thing beyond the limit");
        assert_eq!(handles.get(&third).map(Tensor::read_float32).expect("it is there"), Ok(vec![3.0]));
        let number = first.rep();
        handles.take(first).expect("it is there");
        assert!(handles.get(&Resource::<Tensor>::new_own(number)).is_err());
        assert!(handles.take(Resource::<Tensor>::new_own(number)).is_err(), "it was given back");
        assert_eq!(handles.push(tensor(5.0)).expect("there is room").rep(), number);
        assert_eq!(handles.take(thing).expect("it is there"), Thing(2));
        assert!(handles.push(Thing(6)).is_ok());
        assert!(handles.push(Thing(7)).is_err());
    }
}
