//! `peer idle`: opens connections, sees that each one works, holds them until its input says a line or ends.

use std::io::{self, Read as _, Write as _};

use serde_json::json;

use crate::arguments::Arguments;
use crate::dial::{FAILURES_MAX, Service, Way};

/// Prints how many are open, then waits.
pub(crate) fn run(way: &Way, mut arguments: Arguments) -> io::Result<()> {
    let count = arguments.count("connections")?;
    arguments.finish()?;
    let (mut open, mut failure) = (Vec::with_capacity(count), None);
    let mut failures = 0;
    while open.len() + failures < count && failures < FAILURES_MAX {
        let answered = way.stream(Service::Echo).and_then(|mut stream| {
            let mut byte = [7];
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
            Ok(stream)
        });
        match answered {
            Ok(stream) => open.push(stream),
            Err(error) => {
                failures += 1;
                failure = Some(error.to_string());
            }
        }
    }
    println!("{}", json!({ "open": open.len(), "refused": count - open.len(), "failure": failure }));
    io::stdout().flush()?;
    io::stdin().read_line(&mut String::new())?;
    Ok(())
}
