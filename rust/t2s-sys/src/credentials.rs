//! Users and capabilities of the calling thread (`capabilities(7)`, `credentials(7)`).
//!
//! Capabilities and `no_new_privs` belong to a thread and are inherited by the threads that it starts; the user belongs
//! to the process, as libc keeps all threads at the same one.

use std::ffi::{CStr, CString};
use std::io;
use std::mem;

use super::check;

/// The layout of capability sets that all kernels since 2.6.26 speak (`_LINUX_CAPABILITY_VERSION_3`).
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// Room for one entry of the user database, bytes: glibc asks for 1,024, names from a directory service are longer.
const ENTRY_BYTES: usize = 16 * 1024;

/// `struct __user_cap_header_struct` of `linux/capability.h`.
#[repr(C)]
struct Header {
    version: u32,
    thread: i32,
}

/// `struct __user_cap_data_struct`: 32 capabilities of each set.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// A user of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    name: CString,
    user: libc::uid_t,
    group: libc::gid_t,
}

impl Account {
    /// The user's number.
    pub fn user(&self) -> u32 {
        self.user
    }

    /// Whether the calling thread is this user already, with no way back to another.
    pub fn is_current(&self) -> bool {
        let (mut real, mut effective, mut saved) = (0, 0, 0);
        // SAFETY: the three numbers are writable and outlive the call, which cannot fail otherwise.
        unsafe { libc::getresuid(&raw mut real, &raw mut effective, &raw mut saved) };
        [real, effective, saved] == [self.user; 3]
    }
}

/// Looks a user up by name; `None` when nobody has it.
pub fn account(name: &str) -> io::Result<Option<Account>> {
    let Ok(name) = CString::new(name) else { return Ok(None) };
    // SAFETY: `passwd` is plain data for which all zeros is a value.
    let mut entry: libc::passwd = unsafe { mem::zeroed() };
    let mut text: Vec<libc::c_char> = vec![0; ENTRY_BYTES];
    let mut found: *mut libc::passwd = std::ptr::null_mut();
    // SAFETY: name, entry, text (with its length) and result outlive the call, and all but the name are writable.
    let code =
        unsafe { libc::getpwnam_r(name.as_ptr(), &raw mut entry, text.as_mut_ptr(), text.len(), &raw mut found) };
    match (code, found.is_null()) {
        (0, false) => Ok(Some(Account { name, user: entry.pw_uid, group: entry.pw_gid })),
        // POSIX has 0 for a name that nobody has, and some databases answer these.
        (0 | libc::ENOENT | libc::ESRCH, true) => Ok(None),
        (code, _) => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Makes the process run as a user, with that user's groups. What the calling thread is permitted survives when
/// `keep_capabilities` is on; other threads lose theirs.
pub fn become_account(account: &Account) -> io::Result<()> {
    let name: &CStr = &account.name;
    // SAFETY: the name is a C string that outlives the call.
    check(unsafe { libc::initgroups(name.as_ptr(), account.group as _) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::setresgid(account.group, account.group, account.group) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::setresuid(account.user, account.user, account.user) })?;
    Ok(())
}

/// Says whether permitted capabilities of the calling thread survive a change of user.
pub fn keep_capabilities(keep: bool) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0, 0, 0) })?;
    Ok(())
}

/// The permitted capabilities of the calling thread, a bit each.
pub fn permitted() -> io::Result<u64> {
    let header = Header { version: CAPABILITY_VERSION, thread: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: header and sets have the kernel's layout for this version, which is two entries; both outlive the call.
    let answer = unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) };
    check(answer as libc::c_int)?;
    Ok(u64::from(sets[1].permitted) << 32 | u64::from(sets[0].permitted))
}

/// Sets the capabilities of the calling thread: `permitted`, of which `effective` count at once; none are inheritable.
pub fn set_capabilities(permitted: u64, effective: u64) -> io::Result<()> {
    let header = Header { version: CAPABILITY_VERSION, thread: 0 };
    let half = |set: u64, high: bool| if high { (set >> 32) as u32 } else { set as u32 };
    let sets = [false, true].map(|high| Sets {
        effective: half(effective, high),
        permitted: half(permitted, high),
        inheritable: 0,
    });
    // SAFETY: as in `permitted`; the kernel only reads.
    let answer = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    check(answer as libc::c_int)?;
    Ok(())
}

/// Clears the ambient set, which a program that is executed would get.
pub fn clear_ambient() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })?;
    Ok(())
}

/// Nothing that this thread executes gains privileges, for good.
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_looked_up() {
        let root = account("root").unwrap().unwrap();
        assert_eq!(root.user(), 0);
        assert_eq!(account("no such user").unwrap(), None);
        assert_eq!(account("no\0name").unwrap(), None);
    }

    #[test]
    fn a_thread_gives_its_capabilities_up_alone() {
        let before = permitted().unwrap();
        std::thread::spawn(|| {
            set_capabilities(0, 0).unwrap();
            clear_ambient().unwrap();
            no_new_privileges().unwrap();
            assert_eq!(permitted().unwrap(), 0);
            assert!(set_capabilities(1, 0).is_err(), "what is given up does not come back");
        })
        .join()
        .unwrap();
        assert_eq!(permitted().unwrap(), before);
    }
}
