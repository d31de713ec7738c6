//! Hostile components, options, data and checkpoints: attacks 31 to 50.

attacks! {}
