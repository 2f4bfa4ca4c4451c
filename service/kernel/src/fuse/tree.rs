//! The names of a mount: directories, and the files in them.
//!
//! A number of an inode is never used again, so that no generation tells two of them apart, and a listing that goes
//! on after a change goes on at the right place. What was removed stays as long as the kernel knows its number
//! (forget counts), for programs that have it open.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{
    Error, Kind, Result,
    fuse::file::{File, Meta},
};

pub const ROOT: u64 = 1;

pub enum Node {
    Directory { entries: BTreeMap<String, u64>, meta: Meta },
    File(Arc<File>),
}

pub struct Inode {
    pub parent: u64,
    pub name: String,
    pub node: Node,
    /// Whether it has not been removed.
    pub linked: bool,
    /// How often the kernel was told of it and has not forgotten it.
    lookups: u64,
}

/// What was taken out of a directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Removed {
    pub parent: u64,
    pub ino: u64,
    pub name: String,
    /// The whole name.
    pub path: String,
    pub is_directory: bool,
}

pub struct Tree {
    inodes: HashMap<u64, Inode>,
    next: u64,
    /// Of directories.
    mode: u32,
    files: u32,
    most_files: u32,
}

/// Longest name of a file, NAME_MAX.
pub const NAME_MAX: usize = 255;

/// Directories in each other.
const DEPTH: usize = 32;

/// The parts of a name, checked.
pub fn parts(name: &str) -> Result<Vec<&str>> {
    let refused = |why: &str| {
        Error::invalid(format!("the name {name:?} {why}; it must be like \"jobs\" or \"sound/volume\""))
    };
    let parts: Vec<&str> = name.split('/').collect();
    for part in &parts {
        match *part {
            "" => return Err(refused("has an empty part")),
            "." | ".." => return Err(refused("has a part that is . or ..")),
            part if part.contains('\0') => return Err(refused("has a zero byte")),
            part if part.len() > NAME_MAX => {
                return Err(refused(&format!("has a part of {} bytes; {NAME_MAX} are the most", part.len())));
            }
            _ => {}
        }
    }
    if parts.len() > DEPTH {
        return Err(refused(&format!("has {} parts; {DEPTH} are the most", parts.len())));
    }
    Ok(parts)
}

impl Tree {
    pub fn new(mode: u32, most_files: u32) -> Self {
        let mode = mode | (mode & 0o444) >> 2;
        let root = Inode {
            parent: ROOT,
            name: String::new(),
            node: Node::Directory { entries: BTreeMap::new(), meta: Meta::new(mode) },
            linked: true,
            lookups: 1,
        };
        Self { inodes: HashMap::from([(ROOT, root)]), next: ROOT + 1, mode, files: 0, most_files }
    }

    pub fn files(&self) -> u32 {
        self.files
    }

    pub fn most_files(&self) -> u32 {
        self.most_files
    }

    pub fn get(&self, ino: u64) -> Option<&Inode> {
        self.inodes.get(&ino)
    }

    pub fn get_mut(&mut self, ino: u64) -> Option<&mut Inode> {
        self.inodes.get_mut(&ino)
    }

    pub fn entries(&self, ino: u64) -> Option<&BTreeMap<String, u64>> {
        match &self.get(ino)?.node {
            Node::Directory { entries, .. } => Some(entries),
            Node::File(_) => None,
        }
    }

    /// The whole name of an inode.
    pub fn name(&self, mut ino: u64) -> String {
        let mut parts = Vec::new();
        while let Some(inode) = self.get(ino).filter(|_| ino != ROOT) {
            parts.push(inode.name.as_str());
            ino = inode.parent;
        }
        parts.reverse();
        parts.join("/")
    }

    fn find(&self, parts: &[&str]) -> Option<u64> {
        parts.iter().try_fold(ROOT, |ino, part| self.entries(ino)?.get(*part).copied())
    }

    /// How many of the first parts of a name are there.
    pub fn known(&self, name: &str) -> usize {
        let parts: Vec<_> = name.split('/').collect();
        (1..=parts.len()).take_while(|length| self.find(&parts[..*length]).is_some()).count()
    }

    /// The file of this name.
    pub fn file(&self, name: &str) -> Option<Arc<File>> {
        match &self.get(self.find(&name.split('/').collect::<Vec<_>>())?)?.node {
            Node::File(file) => Some(file.clone()),
            Node::Directory { .. } => None,
        }
    }

    /// Adds a file, and the directories above it. `make` is given its number.
    pub fn add(&mut self, name: &str, make: impl FnOnce(u64) -> Result<File>) -> Result<Arc<File>> {
        let parts = parts(name)?;
        let exists = |what: &str| Err(Error::new(Kind::Exists, format!("cannot publish {name:?}: {what}")));
        for length in 1..parts.len() {
            let above = self.find(&parts[..length]).and_then(|ino| self.get(ino));
            if let Some(Inode { node: Node::File(_), .. }) = above {
                return exists(&format!("{:?} is a file, and no directory", parts[..length].join("/")));
            }
        }
        match self.find(&parts).and_then(|ino| self.get(ino)) {
            Some(Inode { node: Node::Directory { .. }, .. }) => {
                return exists("there is a directory of this name");
            }
            Some(_) => return exists("there is a file of this name; Unpublish it first"),
            None => {}
        }
        if self.files >= self.most_files {
            return Err(Error::new(
                Kind::LimitExceeded,
                format!(
                    "cannot publish {name:?}: the mount has {} files, as many as it may (files); Unpublish some, or \
                     give files=N to Create",
                    self.files
                ),
            ));
        }
        let (last, above) = match parts.split_last() {
            Some((last, above)) => (*last, above),
            None => return exists("it has no name"),
        };
        let number = self.next + above.len() as u64;
        let file = Arc::new(make(number)?);
        let mut parent = ROOT;
        for part in above {
            parent = match self.entries(parent).and_then(|entries| entries.get(*part)) {
                Some(ino) => *ino,
                None => {
                    let directory = Node::Directory { entries: BTreeMap::new(), meta: Meta::new(self.mode) };
                    let ino = self.next;
                    self.next += 1;
                    self.link(parent, part, ino, directory);
                    ino
                }
            };
        }
        self.next = number + 1;
        self.link(parent, last, number, Node::File(file.clone()));
        self.files += 1;
        Ok(file)
    }

    fn link(&mut self, parent: u64, name: &str, ino: u64, node: Node) {
        if let Some(Inode { node: Node::Directory { entries, meta }, .. }) = self.get_mut(parent) {
            entries.insert(name.to_owned(), ino);
            meta.touch();
        }
        self.inodes.insert(ino, Inode { parent, name: name.to_owned(), node, linked: true, lookups: 0 });
    }

    /// Takes out a file, or a directory with all in it, and directories that are empty then.
    pub fn remove(&mut self, name: &str) -> Result<Vec<Removed>> {
        let mut parts = parts(name)?;
        let Some(found) = self.find(&parts) else {
            return Err(Error::new(Kind::NotFound, format!("nothing is published as {name:?}")));
        };
        let mut removed = Vec::new();
        self.unlink(found, &mut removed);
        while parts.pop().is_some() && !parts.is_empty() {
            match self.find(&parts) {
                Some(ino) if self.entries(ino).is_some_and(BTreeMap::is_empty) => {
                    self.unlink(ino, &mut removed)
                }
                _ => break,
            }
        }
        Ok(removed)
    }

    fn unlink(&mut self, ino: u64, removed: &mut Vec<Removed>) {
        let below: Vec<u64> =
            self.entries(ino).map(|entries| entries.values().copied().collect()).unwrap_or_default();
        for child in below {
            self.unlink(child, removed);
        }
        let path = self.name(ino);
        let Some(inode) = self.get_mut(ino) else { return };
        inode.linked = false;
        if let Node::File(file) = &inode.node {
            file.remove();
        }
        let (parent, name, is_file) = (inode.parent, inode.name.clone(), matches!(inode.node, Node::File(_)));
        if inode.lookups == 0 {
            self.inodes.remove(&ino);
        }
        if let Some(Inode { node: Node::Directory { entries, meta }, .. }) = self.get_mut(parent) {
            entries.remove(&name);
            meta.touch();
        }
        self.files -= u32::from(is_file);
        removed.push(Removed { parent, ino, name, path, is_directory: !is_file });
    }

    /// The kernel is told of an entry.
    pub fn look_up(&mut self, parent: u64, name: &str) -> Option<u64> {
        let ino = *self.entries(parent)?.get(name)?;
        self.get_mut(ino)?.lookups += 1;
        Some(ino)
    }

    /// The kernel is told of what it may know already, and what has no name any more.
    pub fn known_again(&mut self, ino: u64) {
        if let Some(inode) = self.get_mut(ino) {
            inode.lookups += 1;
        }
    }

    /// The kernel has forgotten what it was told.
    pub fn forget(&mut self, ino: u64, times: u64) {
        let Some(inode) = self.get_mut(ino).filter(|_| ino != ROOT) else { return };
        inode.lookups = inode.lookups.saturating_sub(times);
        if inode.lookups == 0 && !inode.linked {
            self.inodes.remove(&ino);
        }
    }

    /// The names of all files, with what they are.
    pub fn all(&self) -> Vec<(String, Arc<File>)> {
        let file = |(ino, inode): (&u64, &Inode)| match &inode.node {
            Node::File(file) if inode.linked => Some((self.name(*ino), file.clone())),
            _ => None,
        };
        let mut all: Vec<_> = self.inodes.iter().filter_map(file).collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::file::{Published, Quota};

    fn add(tree: &mut Tree, name: &str) -> Result<Arc<File>> {
        let quota = Quota::new(100);
        tree.add(name, |ino| Ok(File::new(ino, 0o600, Published::Held(Vec::new()), quota).expect("room")))
    }

    #[test]
    fn names_are_checked() {
        for name in
            ["", "/", "/a", "a/", "a//b", ".", "a/../b", "a\0b", &"x".repeat(256), &["a"; 33].join("/")]
        {
            assert_eq!(parts(name).expect_err(name).kind, Kind::InvalidArgument, "{name:?}");
        }
        assert_eq!(parts("a/b c/ü").expect("valid"), ["a", "b c", "ü"]);
    }

    #[test]
    fn directories_come_and_go_with_what_is_in_them() {
        let mut tree = Tree::new(0o640, 3);
        let first = add(&mut tree, "a/b/c").expect("added");
        assert_eq!(tree.name(first.ino), "a/b/c");
        assert_eq!(add(&mut tree, "a/b").expect_err("a directory").kind, Kind::Exists);
        assert_eq!(add(&mut tree, "a/b/c/d").expect_err("below a file").kind, Kind::Exists);
        assert_eq!(add(&mut tree, "a/b/c").expect_err("twice").kind, Kind::Exists);
        add(&mut tree, "a/d").expect("added");
        let names: Vec<_> =
            tree.remove("a/b/c").expect("removed").into_iter().map(|gone| gone.name).collect();
        assert_eq!(names, ["c", "b"], "the directory that is empty then, too");
        assert_eq!(tree.remove("a/b").expect_err("gone").kind, Kind::NotFound);
        add(&mut tree, "e").expect("added");
        add(&mut tree, "f/g").expect("added");
        assert_eq!(add(&mut tree, "h").expect_err("the fourth").kind, Kind::LimitExceeded);
        assert!(tree.file("h").is_none() && tree.entries(ROOT).is_some_and(|entries| entries.len() == 3));
        tree.remove("a").expect("removed with all in it");
        assert_eq!(tree.files(), 2);
        let all: Vec<_> = tree.all().into_iter().map(|(name, _)| name).collect();
        assert_eq!(all, ["e", "f/g"]);
    }

    #[test]
    fn what_the_kernel_knows_stays_until_it_forgets() {
        let mut tree = Tree::new(0o600, 9);
        let file = add(&mut tree, "a").expect("added");
        assert_eq!(tree.look_up(ROOT, "a"), Some(file.ino));
        assert_eq!(tree.look_up(ROOT, "a"), Some(file.ino));
        tree.remove("a").expect("removed");
        assert_eq!(tree.look_up(ROOT, "a"), None);
        tree.forget(file.ino, 1);
        assert!(tree.get(file.ino).is_some_and(|inode| !inode.linked));
        tree.forget(file.ino, 1);
        assert!(tree.get(file.ino).is_none());
        let again = add(&mut tree, "a").expect("added");
        assert!(again.ino > file.ino, "numbers are not used again");
        tree.forget(ROOT, 1000);
        assert!(tree.get(ROOT).is_some());
    }
}
