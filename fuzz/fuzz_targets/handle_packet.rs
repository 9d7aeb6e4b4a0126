//! `Stack::handle_packet` and everything that its driver may call, in any order, with any bytes.

#![no_main]

#[path = "../../rust/t2s-core/tests/drive/mod.rs"]
mod drive;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    drive::drive(data);
});
