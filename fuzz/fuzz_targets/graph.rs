#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kilnbox_fuzz::graph(bytes));
