//! Guests that misuse the processor, memory and their own calls: attacks 1 to 10.

use kilnbox_host::Limits;

use crate::guest::{component, describe, small};
use crate::table::Outcome::Limit;

attacks! {
    "1" a_loop_without_end_ends_at_the_deadline:
    "a call that never returns" => Limit("seconds_per_call"), says ["0.3 s"], {
        let guest = component(include_str!("guests/endless-loop.wat"))?;
        describe(&guest, Limits { seconds_per_call: Some(0.3), ..small() })?
    }
}
