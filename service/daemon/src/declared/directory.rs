//! Where declarations lie, and when they have changed.
//!
//! As with systemd's units: files `*.toml` in the order of their names, and of two with the same name in two
//! directories the one in the first directory counts, so that a link to /dev/null there masks the other.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind},
    mem::MaybeUninit,
    path::{Path, PathBuf},
    time::Duration,
};

use ipc_engine::wait;
use ipc_kernel::{Error, Fd, mechanisms::Register};
use rustix::{
    event::PollFlags,
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};
use tokio::time::{Instant, timeout_at};

use super::file::{self, Declarations, Problem};
use crate::config;

/// The largest file that is read.
const MAX_SIZE: u64 = 1 << 20;

/// The most files that are read.
const MAX_FILES: usize = 1024;

/// Who writes several files, or one in several steps, is left this long to go on, and this long in all.
const QUIET: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(1);

/// What happens to a file when it comes, goes or changes.
const CHANGES: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// The directories, the one that counts more first.
#[derive(Debug, Clone, Default)]
pub struct Directories(Vec<PathBuf>);

/// What the files say, by the files' names.
pub type Files = BTreeMap<String, Result<Declarations, Vec<Problem>>>;

impl Directories {
    pub fn one(directory: PathBuf) -> Self {
        Self(vec![std::path::absolute(&directory).unwrap_or(directory)])
    }

    /// `ipcd/relays.d` in the user's configuration, and in /etc.
    pub fn usual() -> Self {
        let own = config::home().into_iter();
        Self(own.chain([PathBuf::from("/etc")]).map(|dir| dir.join("ipcd/relays.d")).collect())
    }

    /// Reads all files. May take the time that the file system takes.
    pub fn read(&self, register: Register) -> Files {
        let mut files = Files::new();
        for directory in &self.0 {
            match names(directory) {
                Ok(names) => {
                    for (name, path) in names {
                        if !files.contains_key(&name) && files.len() < MAX_FILES {
                            files.insert(name, read(register, path));
                        }
                    }
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    // A name that no file has.
                    files.insert(
                        directory.display().to_string(),
                        Err(vec![problem(directory.clone(), &error)]),
                    );
                }
            }
        }
        files
    }
}

fn names(directory: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut names = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_declaration(name.as_bytes()) {
            names.insert(name, entry.path());
        }
    }
    Ok(names)
}

/// Hidden files are those that editors are not done with.
fn is_declaration(name: &[u8]) -> bool {
    name.ends_with(b".toml") && !name.starts_with(b".")
}

fn read(register: Register, path: PathBuf) -> Result<Declarations, Vec<Problem>> {
    let text = text(&path).map_err(|error| vec![problem(path.clone(), &error)])?;
    file::read(register, path, &text)
}

fn text(path: &Path) -> io::Result<String> {
    if fs::canonicalize(path)? == Path::new("/dev/null") {
        return Ok(String::new());
    }
    let metadata = fs::metadata(path)?;
    // Opening a FIFO would wait for its writer.
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if metadata.len() > MAX_SIZE {
        return Err(io::Error::other(format!(
            "it has {} bytes; at most {MAX_SIZE} are read",
            metadata.len()
        )));
    }
    fs::read_to_string(path)
}

fn problem(path: PathBuf, error: &io::Error) -> Problem {
    Problem { path, line: 1, text: format!("cannot be read: {error}") }
}

/// Watches the directories, or where they would be.
#[derive(Debug)]
pub struct Watcher(Fd);

impl Watcher {
    /// From now on: what is read afterwards is no older.
    pub fn new(directories: &Directories) -> io::Result<Self> {
        let instance = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        for directory in &directories.0 {
            // As deep as there is something.
            let mut absent: Option<&Path> = None;
            for place in directory.ancestors() {
                match inotify::add_watch(&instance, place, CHANGES) {
                    // What was not there has come meanwhile, and nothing would tell of what happens in it.
                    Ok(_) if absent.is_some_and(Path::exists) => return Self::new(directories),
                    Ok(_) => break,
                    Err(Errno::NOENT) => absent = Some(place),
                    Err(Errno::NOTDIR | Errno::ACCESS) => absent = None,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(Self(instance.into()))
    }

    /// Completes when something has changed and it is quiet again.
    pub async fn changed(&self) -> Result<(), Error> {
        while !self.happened().await? {}
        let end = Instant::now() + PATIENCE;
        while let Ok(more) = timeout_at(end.min(Instant::now() + QUIET), self.happened()).await {
            more?;
        }
        Ok(())
    }

    /// Waits for events; says whether one of them may be about a file of ours.
    async fn happened(&self) -> Result<bool, Error> {
        wait::ready(self.0.clone(), PollFlags::IN).await?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut buffer);
        let mut ours = false;
        loop {
            match reader.next() {
                Ok(event) => {
                    // Directories, the watched ones and those above, count whatever their names are.
                    let about_files =
                        !event.events().intersects(ReadFlags::ISDIR | ReadFlags::QUEUE_OVERFLOW);
                    let other = event.file_name().is_some_and(|name| !is_declaration(name.to_bytes()));
                    ours |= !(about_files && other);
                }
                Err(Errno::AGAIN) => return Ok(ours),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::from_errno(errno, "read inotify events")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Result, os::unix::fs::symlink};

    use super::*;

    const PIPE: &str = "[endpoint.e]\ncreate = \"pipe:\"\n";

    #[test]
    fn the_first_directory_counts_more() -> Result<()> {
        let (own, all) = (tempfile::tempdir()?, tempfile::tempdir()?);
        for name in ["a.toml", "b.toml", "c.toml", ".hidden.toml", "d.toml~"] {
            fs::write(all.path().join(name), "[")?;
        }
        fs::write(own.path().join("a.toml"), PIPE)?;
        symlink("/dev/null", own.path().join("b.toml"))?;
        let missing = own.path().join("missing");
        let directories = Directories(vec![missing, own.path().to_owned(), all.path().to_owned()]);
        let files = directories.read(ipc_bus::MECHANISMS);
        assert_eq!(files.keys().collect::<Vec<_>>(), ["a.toml", "b.toml", "c.toml"]);
        assert_eq!(files["a.toml"].as_ref().map(BTreeMap::len), Ok(1));
        assert_eq!(files["b.toml"].as_ref().map(BTreeMap::len), Ok(0));
        let problems = files["c.toml"].as_ref().expect_err("a bracket says nothing");
        assert_eq!((problems[0].path.clone(), problems[0].line), (all.path().join("c.toml"), 1));
        Ok(())
    }

    #[test]
    fn what_is_no_file_is_not_opened() -> Result<()> {
        let dir = tempfile::tempdir()?;
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("fifo.toml"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )?;
        let files = Directories::one(dir.path().to_owned()).read(ipc_bus::MECHANISMS);
        let problems = files["fifo.toml"].as_ref().expect_err("a FIFO is no file");
        assert!(problems[0].text.contains("no regular file"), "{}", problems[0]);
        Ok(())
    }
}
