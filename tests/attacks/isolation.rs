//! Guests that reach for what belongs to others: attacks 54 to 56, and those beyond the list.

attacks! {}
