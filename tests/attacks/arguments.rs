//! Guests that call the host with arguments that break it: attacks 11 to 30.

attacks! {}
