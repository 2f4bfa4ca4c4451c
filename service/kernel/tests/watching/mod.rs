//! What the tests of inotify share.

#![allow(dead_code, clippy::unwrap_used)] // Every test binary uses its own part; a test fails by panicking.

pub mod ground;
pub mod model;

use std::{os::unix::ffi::OsStrExt, path::Path, sync::Once};

use ipc_kernel::{
    Address, Attempt, Endpoint,
    mechanisms::inotify::DESCRIPTOR,
    shape::{Event, Notice},
};

use crate::waiting::{PATIENCE, create, finish, wait};

pub fn address(path: &Path) -> Address {
    Address::new("inotify").with("path", path.as_os_str().as_bytes())
}

pub fn drive() -> Attempt<()> {
    DESCRIPTOR.driver.unwrap()().unwrap()
}

/// Creates a watch, with the driver running as the engine runs it.
pub fn watch(address: &Address) -> Box<dyn Endpoint> {
    static DRIVEN: Once = Once::new();
    DRIVEN.call_once(|| {
        std::thread::spawn(|| {
            loop {
                if let Attempt::Wait(readiness) = drive() {
                    wait(readiness, PATIENCE);
                }
            }
        });
    });
    create(&DESCRIPTOR, address).unwrap()
}

pub fn next(endpoint: &dyn Endpoint) -> Vec<Notice> {
    finish(|| endpoint.events().unwrap().next()).unwrap()
}

/// Everything up to the first notice that is the last one wanted.
pub fn until(endpoint: &dyn Endpoint, last: impl Fn(&Notice) -> bool) -> Vec<Notice> {
    let mut all = Vec::new();
    loop {
        all.extend(next(endpoint));
        if all.iter().any(&last) {
            return all;
        }
    }
}

pub fn is_end(notice: &Notice) -> bool {
    matches!(notice, Notice::End(_))
}

pub fn event(names: &[&'static str], path: impl AsRef<Path>) -> Notice {
    let path = path.as_ref().as_os_str().as_bytes().to_owned();
    Notice::Event(Event { names: names.to_owned(), path, ..Event::default() })
}

/// A rename, told as one event.
pub fn renamed(kind: &[&'static str], from: impl AsRef<Path>, to: impl AsRef<Path>) -> Notice {
    let [from, path] = [from.as_ref(), to.as_ref()].map(|path| path.as_os_str().as_bytes().to_owned());
    let names = [&["MOVED_FROM", "MOVED_TO"], kind].concat();
    Notice::Event(Event { names, path, from, ..Event::default() })
}

pub fn end(reason: &str) -> Notice {
    Notice::End(reason.into())
}
