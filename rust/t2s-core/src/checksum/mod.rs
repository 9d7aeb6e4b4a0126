//! Internet checksums (RFC 1071) behind one run-time dispatch.

/// A kernel that this CPU can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(());

impl Kernel {
    /// The fastest kernel of this CPU.
    pub const fn auto() -> Self {
        Self(())
    }
}
