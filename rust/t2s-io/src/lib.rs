//! The operating-system shell of t2s and the load of its lab.

pub mod load;
pub mod sys;
