//! wasi-nn, which is not offered yet: attacks 51 to 53.

attacks! {}
