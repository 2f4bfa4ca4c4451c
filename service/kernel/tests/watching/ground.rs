//! A directory that random operations are done in, for the tests of inotify over a tree.

#![allow(dead_code, clippy::unwrap_used)] // Every test binary uses its own part; a test fails by panicking.

use std::{
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;

use super::model::View;

/// What is done; the numbers choose among the paths that there are, or name new ones.
#[derive(Debug, Clone)]
pub enum Operation {
    Create(u8, u8),
    Write(u8),
    Append(u8),
    Rename(u8, u8, u8),
    Exchange(u8, u8),
    MoveOut(u8),
    MoveIn(u8, u8),
    MakeDirectories(u8, u8),
    Link(u8, u8, u8),
    RemoveFile(u8),
    RemoveTree(u8),
    Symlink(u8, u8),
}

pub fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let (a, b, c) = (any::<u8>(), any::<u8>(), any::<u8>());
    prop_oneof![
        3 => (a, b).prop_map(|(a, b)| Create(a, b)),
        2 => a.prop_map(Write),
        1 => a.prop_map(Append),
        5 => (a, b, c).prop_map(|(a, b, c)| Rename(a, b, c)),
        1 => (a, b).prop_map(|(a, b)| Exchange(a, b)),
        2 => a.prop_map(MoveOut),
        2 => (a, b).prop_map(|(a, b)| MoveIn(a, b)),
        4 => (a, b).prop_map(|(a, b)| MakeDirectories(a, b)),
        1 => (a, b, c).prop_map(|(a, b, c)| Link(a, b, c)),
        2 => a.prop_map(RemoveFile),
        1 => a.prop_map(RemoveTree),
        1 => (a, b).prop_map(|(a, b)| Symlink(a, b)),
    ]
}

pub struct Ground {
    pub watched: PathBuf,
    outside: PathBuf,
    made: u32,
}

impl Ground {
    /// In an empty directory: a tree of a few names, which is to be watched, and a place outside of it.
    pub fn new(directory: &Path) -> Self {
        let [watched, outside] = ["watched", "outside"].map(|name| directory.join(name));
        fs::create_dir_all(watched.join("n0/n1")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(watched.join("n0/n2"), "").unwrap();
        Self { watched, outside, made: 0 }
    }

    fn paths(&self, of: &Path, directories: bool) -> Vec<PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        let view = View::of(of).0.into_iter().filter(|(_, is_directory)| *is_directory == directories);
        view.map(|(path, _)| std::ffi::OsString::from_vec(path).into()).collect()
    }

    fn pick(&self, directories: bool, number: u8) -> Option<PathBuf> {
        let paths = self.paths(&self.watched, directories);
        (!paths.is_empty()).then(|| paths[number as usize % paths.len()].clone())
    }

    fn directory(&self, number: u8) -> PathBuf {
        let mut paths = self.paths(&self.watched, true);
        paths.push(self.watched.clone());
        paths[number as usize % paths.len()].clone()
    }

    /// Few names, so that they meet.
    fn name(number: u8) -> String {
        format!("n{}", number % 6)
    }

    /// What fails, as a name is taken or a directory would go into itself, does nothing.
    pub fn run(&mut self, operation: &Operation) {
        use Operation::*;
        match *operation {
            Create(directory, name) => {
                _ = fs::File::create_new(self.directory(directory).join(Self::name(name)));
            }
            Write(file) => _ = self.pick(false, file).map(|path| fs::write(path, "text")),
            Append(file) => {
                _ = self.pick(false, file).map(|path| {
                    fs::OpenOptions::new()
                        .append(true)
                        .open(path)
                        .and_then(|mut file| std::io::Write::write_all(&mut file, b"more"))
                });
            }
            Rename(from, directory, name) => {
                let from = self.pick(from % 2 == 0, from / 2);
                _ = from.map(|from| fs::rename(from, self.directory(directory).join(Self::name(name))));
            }
            Exchange(one, two) => {
                let picked = (self.pick(one % 2 == 0, one / 2), self.pick(two % 2 == 0, two / 2));
                if let (Some(one), Some(two)) = picked {
                    let (here, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
                    _ = rustix::fs::renameat_with(here, one, here, two, flags);
                }
            }
            MoveOut(path) => {
                self.made += 1;
                let to = self.outside.join(format!("o{}", self.made));
                _ = self.pick(path % 2 == 0, path / 2).map(|path| fs::rename(path, to));
            }
            MoveIn(path, directory) => {
                let mut paths: Vec<_> =
                    fs::read_dir(&self.outside).unwrap().map(|entry| entry.unwrap().path()).collect();
                paths.sort_unstable();
                if !paths.is_empty() {
                    let to = self.directory(directory).join(Self::name(path / 7));
                    _ = fs::rename(&paths[path as usize % paths.len()], to);
                }
            }
            MakeDirectories(directory, name) => {
                let names: PathBuf = (0..1 + name % 3).map(|n| Self::name(name.wrapping_add(n))).collect();
                let path = self.directory(directory).join(names);
                if fs::create_dir_all(&path).is_ok() && name % 2 == 0 {
                    _ = fs::write(path.join("f"), "at once");
                }
            }
            Link(file, directory, name) => {
                let to = self.directory(directory).join(Self::name(name));
                _ = self.pick(false, file).map(|file| fs::hard_link(file, to));
            }
            RemoveFile(file) => _ = self.pick(false, file).map(fs::remove_file),
            RemoveTree(directory) => _ = self.pick(true, directory).map(fs::remove_dir_all),
            Symlink(directory, name) => {
                _ = std::os::unix::fs::symlink("/etc", self.directory(directory).join(Self::name(name)));
            }
        }
    }
}
