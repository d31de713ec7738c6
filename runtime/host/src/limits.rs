//! What one run of an architecture may use.

/// Bounds of a run. Each has a default that ordinary work does not meet.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Bytes of one component file.
    pub component_bytes: usize,
    /// Bytes of the guest's own memory. It holds hypers, indices and small tables; numbers live with the host.
    pub guest_memory_bytes: usize,
    /// Entries of the guest's function tables.
    pub table_entries: usize,
    /// Handles (tensors, batches, systems) that live at one time.
    pub handles: usize,
    /// Bytes of all tensors that live at one time, the history of gradients included.
    pub tensor_bytes: u64,
    /// Bytes of the guest's call stack.
    pub stack_bytes: usize,
    /// Seconds of one call other than `train`; none for no bound.
    pub seconds_per_call: Option<f64>,
    /// Seconds of a whole training; none for no bound.
    pub seconds_per_training: Option<f64>,
    /// Lines of log in one run; later ones are dropped.
    pub log_lines: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            component_bytes: 64 << 20,
            guest_memory_bytes: 1 << 30,
            table_entries: 100_000,
            handles: 10_000_000,
            tensor_bytes: 64 << 30,
            stack_bytes: 2 << 20,
            seconds_per_call: Some(600.0),
            seconds_per_training: None,
            log_lines: 100_000,
        }
    }
}
