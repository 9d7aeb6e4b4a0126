//! Runs one phase of the lab from a JSON file and prints its result: `cargo run --release --example phase --
//! SPEC.json`.

use std::time::Duration;

use t2s_lab::lab::Lab;

#[global_allocator]
static ALLOCATOR: t2s_sys::heap::CountingAllocator = t2s_sys::heap::CountingAllocator;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: phase SPEC.json")?;
    let lab = Lab::new(&std::fs::read_to_string(path)?)?;
    lab.start()?;
    while !lab.wait(Duration::from_secs(1)) {
        eprintln!("{:?}", lab.progress());
    }
    println!("{}", lab.result()?);
    Ok(())
}
