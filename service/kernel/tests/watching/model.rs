//! What a listener who believes every event holds to be there, to compare it with what is.

use std::{collections::BTreeMap, fs, os::unix::ffi::OsStrExt, path::Path};

use ipc_kernel::shape::Event;

/// Paths, and whether each is a directory.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct View(pub BTreeMap<Vec<u8>, bool>);

impl View {
    /// What is below a directory.
    pub fn of(directory: &Path) -> Self {
        let mut view = Self::default();
        let mut directories = vec![directory.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                let is_directory = entry.file_type().unwrap().is_dir();
                view.0.insert(entry.path().as_os_str().as_bytes().to_owned(), is_directory);
                if is_directory {
                    directories.push(entry.path());
                }
            }
        }
        view
    }

    /// Takes an event in. Err says what is wrong with it: it was told before, or cannot be.
    pub fn apply(&mut self, event: &Event) -> Result<(), String> {
        let has = |name| event.names.contains(&name);
        let directory = has("ISDIR");
        if has("CREATE") {
            if self.0.insert(event.path.clone(), directory) == Some(directory) {
                return Err(format!("told twice: {}", show(event)));
            }
        } else if has("DELETE") || has("MOVED_FROM") && !has("MOVED_TO") {
            if self.take(&event.path).is_empty() {
                return Err(format!("it was not there: {}", show(event)));
            }
        } else if has("MOVED_TO") && event.from.is_empty() {
            self.take(&event.path);
            self.0.insert(event.path.clone(), directory);
        } else if has("MOVED_TO") {
            let moved = self.take(&event.from);
            if moved.is_empty() {
                return Err(format!("it was not there: {}", show(event)));
            }
            self.take(&event.path);
            for (path, is_directory) in moved {
                let path = [&event.path, &path[event.from.len()..]].concat();
                self.0.insert(path, is_directory);
            }
        }
        Ok(())
    }

    /// Takes a path out, with all below it.
    fn take(&mut self, path: &[u8]) -> Vec<(Vec<u8>, bool)> {
        let below = [path, b"/"].concat();
        let gone: Vec<_> =
            self.0.keys().filter(|other| *other == path || other.starts_with(&below)).cloned().collect();
        gone.into_iter().filter_map(|path| self.0.remove_entry(&path)).collect()
    }
}

pub fn show(event: &Event) -> String {
    let [path, from] = [&event.path, &event.from].map(|path| String::from_utf8_lossy(path).into_owned());
    format!("{} {path} {from} {}", event.names.join(","), event.note)
}
