//! Giving privileges up: what a thread that reads packets may still do.
//!
//! It promises: after [`drop_capabilities`] the calling thread, and each that it starts, has no capability but the one
//! that firewall marks need, and gains none by executing anything; after [`give_up`] the process runs as another user
//! too. The mark's capability is found by trying, the smaller one first: `CAP_NET_RAW` (Linux 5.17), else
//! `CAP_NET_ADMIN`. It refuses to start a tunnel as a user that cannot set the mark, since then nobody would be
//! connected.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use t2s_sys::credentials::{self, Account};
use t2s_sys::socket::{self, SocketOption};

/// `CAP_NET_ADMIN` of `linux/capability.h`.
const NET_ADMIN: u64 = 1 << 12;
/// `CAP_NET_RAW`.
const NET_RAW: u64 = 1 << 13;

/// Why privileges were not given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Nobody has the name.
    #[error("user: this machine has no user {0:?}")]
    Unknown(String),
    /// The user database.
    #[error("user: cannot look {name:?} up: {error}")]
    Lookup {
        /// The name.
        name: String,
        /// What the database said.
        error: io::Error,
    },
    /// The change was refused.
    #[error("user: cannot become {name}: {error} (it takes root, or CAP_SETUID and CAP_SETGID)")]
    Become {
        /// The name.
        name: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// No capability for the mark.
    #[error("fwmark: needs CAP_NET_RAW (Linux 5.17) or CAP_NET_ADMIN: {0}")]
    Mark(io::Error),
    /// A capability call failed.
    #[error("cannot give capabilities up: {0}")]
    Capabilities(#[from] io::Error),
}

/// A user that the process will become.
#[derive(Debug)]
pub struct RunAs {
    name: String,
    account: Account,
}

impl RunAs {
    /// Looks a user up.
    pub fn find(name: &str) -> Result<Self, PrivilegeError> {
        match credentials::account(name) {
            Ok(Some(account)) => Ok(Self { name: name.to_owned(), account }),
            Ok(None) => Err(PrivilegeError::Unknown(name.to_owned())),
            Err(error) => Err(PrivilegeError::Lookup { name: name.to_owned(), error }),
        }
    }
}

/// Makes the process run as `run_as`, and confines the calling thread. Call it before other threads are started:
/// those that exist lose all capabilities, and are not barred from gaining any.
pub fn drop_privileges(run_as: &RunAs, fwmark: Option<u32>) -> Result<(), PrivilegeError> {
    if !run_as.account.is_current() {
        credentials::keep_capabilities(true)?;
        let became = credentials::become_account(&run_as.account);
        credentials::keep_capabilities(false)?;
        became.map_err(|error| PrivilegeError::Become { name: run_as.name.clone(), error })?;
    }
    drop_capabilities(fwmark)
}

/// Leaves the calling thread no capability but the one that `fwmark` needs.
pub fn drop_capabilities(fwmark: Option<u32>) -> Result<(), PrivilegeError> {
    let permitted = credentials::permitted()?;
    credentials::clear_ambient()?;
    credentials::no_new_privileges()?;
    let Some(fwmark) = fwmark else { return Ok(credentials::set_capabilities(0, 0)?) };
    let mut refusal = None;
    for wanted in [NET_RAW, NET_ADMIN] {
        let had = permitted & wanted;
        credentials::set_capabilities(permitted & (NET_RAW | NET_ADMIN), had)?;
        match try_fwmark(fwmark) {
            Ok(()) => return Ok(credentials::set_capabilities(had, had)?),
            Err(error) => refusal = Some(error),
        }
    }
    credentials::set_capabilities(0, 0)?;
    Err(PrivilegeError::Mark(refusal.unwrap_or_else(|| io::ErrorKind::PermissionDenied.into())))
}

/// Sets a mark on a socket that goes nowhere.
fn try_fwmark(fwmark: u32) -> io::Result<()> {
    let socket = socket::udp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    socket::set(&socket, SocketOption::Mark, fwmark as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs in a thread of its own, as what is given up does not come back.
    fn alone<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(work).join().unwrap()
    }

    #[test]
    fn nothing_is_left_without_a_mark() {
        assert_eq!(
            alone(|| {
                drop_capabilities(None).unwrap();
                credentials::permitted().unwrap()
            }),
            0
        );
    }

    #[test]
    fn a_mark_keeps_one_capability_or_is_refused() {
        let before = credentials::permitted().unwrap() & (NET_RAW | NET_ADMIN);
        let (outcome, left) = alone(|| (drop_capabilities(Some(7)), credentials::permitted().unwrap()));
        if before == 0 {
            assert!(matches!(outcome, Err(PrivilegeError::Mark(_))));
            assert_eq!(left, 0);
        } else {
            assert!(outcome.is_ok());
            assert_eq!((left & before, left.count_ones()), (left, 1));
            assert!(alone(move || drop_capabilities(Some(7)).and_then(|()| Ok(try_fwmark(7)?))).is_ok());
        }
    }

    #[test]
    fn an_unknown_user_is_named() {
        let told = RunAs::find("nobody-of-that-name").unwrap_err().to_string();
        assert_eq!(told, "user: this machine has no user \"nobody-of-that-name\"");
    }
}
