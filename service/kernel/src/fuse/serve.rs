//! The kernel's requests, answered on the thread of the mount.
//!
//! It answers from memory, or puts the request into the queue with the answer that is owed; it waits for nothing but
//! room in the queue, and not longer than the deadline. Files bypass the page cache (FOPEN_DIRECT_IO), as somebody
//! else may change what is in them at any time; attributes and entries are valid for no time at all.

use std::{
    ffi::OsStr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::io;

use crate::{
    fuse::{
        announce::Deed,
        file::{Body, Meta, lock},
        opened::{Opened, Shared},
        requests::{Answer, Later, Patience, Ready, Upcall, What},
        tree::{NAME_MAX, Node, ROOT},
    },
    signal::status,
};

/// Bytes that one request carries.
pub const MAX_WRITE: u32 = 1024 * 1024;

/// Bytes of the longest write(2) that certainly comes as one request: the kernel cuts a longer one into as many pages as
/// a request has, the first of which may be filled in part.
pub fn whole_write() -> usize {
    MAX_WRITE as usize - rustix::param::page_size()
}

/// How long the kernel may believe what it was told.
const TTL: Duration = Duration::ZERO;

/// The file system as `fuser` serves it.
pub struct Server(pub Arc<Shared>);

/// The process of a thread, which is what FUSE tells the number of.
fn process(tid: u32) -> u32 {
    let status = status::status(&status::directory(tid.cast_signed(), None));
    status.map_or(tid, |status| status.tgid.cast_unsigned())
}

fn errno(errno: io::Errno) -> Errno {
    Errno::from_i32(errno.raw_os_error())
}

impl Server {
    fn made(&self, thread: u32, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let is_shown = self.0.deed(thread, name) == Some(Deed::Making);
        match is_shown.then(|| self.0.entry(parent, name)).flatten() {
            Some(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            None => reply.error(Errno::EPERM),
        }
    }

    fn removed(&self, thread: u32, name: &OsStr, reply: ReplyEmpty) {
        match self.0.deed(thread, name) {
            Some(Deed::Removing(_)) => reply.ok(),
            _ => reply.error(Errno::EPERM),
        }
    }

    /// Asks somebody else, and has the answer sent from there.
    fn read_asked(
        &self,
        opened: Arc<Opened>,
        pid: u32,
        offset: u64,
        size: usize,
        patience: Patience,
        reply: ReplyData,
    ) {
        let is_text = matches!(opened.file.body, Body::Text(_) | Body::Told(..));
        if is_text && offset > 0 {
            return reply.data(&opened.read_text(offset, size, None));
        }
        if let Some(left) = opened.take_left(size) {
            return reply.data(&left);
        }
        let (taker, version) = (opened.clone(), opened.version());
        let answer = Answer::new(move |answer: Result<Vec<u8>, io::Errno>| match answer {
            Err(error) => reply.error(errno(error)),
            Ok(text) if is_text => reply.data(&taker.read_text(0, size, Some((text, version)))),
            Ok(mut data) => {
                let rest = data.split_off(size.min(data.len()));
                if let Body::Flow(_) = taker.file.body {
                    let mut state = lock(&taker.state);
                    state.taken = true;
                    state.left = rest;
                }
                reply.data(&data);
            }
        });
        self.0.ask(&opened, pid, What::Read { offset, size, patience, answer });
    }
}

impl Filesystem for Server {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Err says what there is instead, and that is taken.
        let _ = config.set_max_write(MAX_WRITE);
        // Since Linux 6.6: files can be mapped although they bypass the page cache.
        let _ = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        Ok(())
    }

    fn destroy(&mut self) {
        self.0.queue.end("it was unmounted");
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.0.deed(req.pid(), name) {
            Some(Deed::Making) => return reply.error(Errno::ENOENT),
            Some(Deed::Removing(gone)) => return reply.entry(&TTL, &self.0.gone(gone), Generation(0)),
            None => {}
        }
        match self.0.entry(parent, name) {
            Some(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            None if name.len() > NAME_MAX => reply.error(Errno::ENAMETOOLONG),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        lock(&self.0.tree).forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let attributes = self.0.attributes(&lock(&self.0.tree), ino.0);
        match attributes {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let shared = &self.0;
        if uid.is_some_and(|uid| uid != shared.uid) || gid.is_some_and(|gid| gid != shared.gid) {
            return reply.error(Errno::EPERM);
        }
        if let Some(size) = size {
            let done = shared.file(ino).and_then(|file| file.truncate(size).map_err(errno));
            if let Err(error) = done {
                return reply.error(error);
            }
        }
        let at = |time| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => SystemTime::now(),
        };
        let mut tree = lock(&shared.tree);
        let change = |meta: &mut Meta| {
            // No set-id bits: the mount would not heed them.
            meta.mode = mode.map_or(meta.mode, |mode| (mode & 0o777) as u16);
            meta.accessed = atime.map_or(meta.accessed, at);
            meta.modified = mtime.map_or(meta.modified, at);
            meta.changed = SystemTime::now();
        };
        match tree.get_mut(ino.0).map(|inode| &mut inode.node) {
            Some(Node::Directory { meta, .. }) => change(meta),
            Some(Node::File(file)) => change(&mut file.meta()),
            None => return reply.error(Errno::ENOENT),
        }
        match shared.attributes(&tree, ino.0) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let file = match self.0.file(ino) {
            Ok(file) => file,
            Err(error) => return reply.error(error),
        };
        // Root is not asked for permissions, and a log has nobody who would take what is written.
        if matches!(file.body, Body::Log(_)) && flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EPERM);
        }
        let opened = match self.0.open(ino, &file) {
            Ok(opened) => opened,
            Err(error) => return reply.error(error),
        };
        let number = opened.number;
        // Closing waits for nobody (Linux 5.18): this process may have a file of the mount open, and end.
        let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
        match &file.body {
            Body::Flow(_) | Body::Call(_) => {
                reply.opened(
                    FileHandle(number),
                    direct | FopenFlags::FOPEN_NONSEEKABLE | FopenFlags::FOPEN_STREAM,
                );
            }
            // The kernel looks at the size before it reads.
            Body::Bytes(..) => {
                let (shared, sized) = (self.0.clone(), file.clone());
                let answer = Answer::new(move |answer| match (answer, &sized.body) {
                    (Ok(bytes), Body::Bytes(_, size)) => {
                        size.store(bytes, Ordering::Release);
                        reply.opened(FileHandle(number), direct);
                    }
                    (answer, _) => {
                        shared.close(FileHandle(number));
                        reply.error(answer.err().map_or(Errno::EIO, errno));
                    }
                });
                self.0.ask(&opened, req.pid(), What::Size(answer));
            }
            _ => reply.opened(FileHandle(number), direct),
        }
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let opened = match self.0.opening(fh) {
            Ok(opened) => opened,
            Err(error) => return reply.error(error),
        };
        let size = size as usize;
        opened.file.meta().accessed = SystemTime::now();
        if !std::mem::replace(&mut lock(&opened.state).told, true) {
            self.0.put(Upcall::Read { name: opened.name.clone(), pid: process(req.pid()) });
        }
        match opened.read(offset, size) {
            Some(data) => reply.data(&data),
            None => {
                let patience = opened.patience(flags);
                self.read_asked(opened, req.pid(), offset, size, patience, reply);
            }
        }
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let opened = match self.0.opening(fh) {
            Ok(opened) => opened,
            Err(error) => return reply.error(error),
        };
        let told = |name: String, data: Vec<u8>| Upcall::Written { name, data };
        // No request is longer than MAX_WRITE.
        let length = data.len() as u32;
        match opened.file.write(offset, data, flags.0 & libc::O_APPEND != 0) {
            Some(Err(error)) => reply.error(errno(error)),
            Some(Ok(())) => {
                self.0.put(told(opened.name.clone(), data.to_owned()));
                reply.written(length);
            }
            None => {
                let (shared, written, writer) = (self.0.clone(), data.to_owned(), opened.clone());
                let done = move |done: Result<(), io::Errno>| match done {
                    Err(error) => reply.error(errno(error)),
                    Ok(()) => {
                        writer.file.meta().touch();
                        // Told by whoever answers: he does not wait for himself to take it.
                        shared.queue.put(told(writer.name.clone(), written), Duration::ZERO);
                        reply.written(length);
                    }
                };
                let data = data.to_owned();
                let what = if matches!(opened.file.body, Body::Call(_)) {
                    let caller = opened.clone();
                    let answer = Answer::new(move |answer| done(caller.answered(answer)));
                    What::Call { data, answer }
                } else {
                    let patience = match opened.patience(flags) {
                        Patience::None => Patience::None,
                        _ => Patience::Deadline,
                    };
                    What::Write { offset, data, patience, answer: Answer::new(done) }
                };
                self.0.ask(&opened, req.pid(), what);
            }
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // The kernel takes it for done, and does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.0.close(fh);
        reply.ok();
    }

    fn poll(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        ph: PollNotifier,
        _events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let opened = match self.0.opening(fh) {
            Ok(opened) => opened,
            Err(error) => return reply.error(error),
        };
        let scheduled = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY);
        // The kernel may have forgotten whoever polled.
        let tell = move || drop(ph.notify());
        if let Body::Held(_) | Body::Log(_) | Body::Told(..) | Body::Call(_) = &opened.file.body {
            if scheduled {
                opened.file.tell(opened.number, Later(Box::new(tell)));
            }
            return reply.poll(events(Ready { read: opened.is_ready(), write: true }));
        }
        let later = (scheduled && !opened.awaited.swap(true, Ordering::AcqRel)).then(|| {
            let opened = opened.clone();
            Later(Box::new(move || {
                opened.awaited.store(false, Ordering::Release);
                tell();
            }))
        });
        let left = !lock(&opened.state).left.is_empty();
        let answer = Answer::new(move |answer: Result<Ready, io::Errno>| match answer {
            Err(error) => reply.error(errno(error)),
            Ok(ready) => reply.poll(events(Ready { read: ready.read || left, ..ready })),
        });
        self.0.ask(&opened, req.pid(), What::Poll { later, answer });
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let tree = lock(&self.0.tree);
        let (Some(entries), Some(inode)) = (tree.entries(ino.0), tree.get(ino.0)) else {
            return reply.error(Errno::ENOTDIR);
        };
        let dots = [(ino.0, 1, "."), (inode.parent, 2, "..")];
        // In the order of their numbers, behind those of the dots.
        let mut listed: Vec<_> = entries.iter().map(|(name, ino)| (*ino, *ino + 2, name.as_str())).collect();
        listed.sort_unstable();
        for (ino, next, name) in dots.into_iter().chain(listed).filter(|(_, next, _)| *next > offset) {
            let kind = match tree.entries(ino).is_some() || ino == ROOT {
                true => FileType::Directory,
                false => FileType::RegularFile,
            };
            if reply.add(INodeNo(ino), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let (files, most) = {
            let tree = lock(&self.0.tree);
            (u64::from(tree.files()), u64::from(tree.most_files()))
        };
        let blocks = self.0.quota.size.div_ceil(512);
        let free = blocks.saturating_sub(self.0.quota.used().div_ceil(512));
        reply.statfs(blocks, free, free, most, most.saturating_sub(files), 512, NAME_MAX as u32, 512);
    }

    // Names are published and unpublished, and in no other way made, moved or removed. For those who watch that is done once
    // more ([`announce`](super::announce)).

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        self.made(req.pid(), parent, name, reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.made(req.pid(), parent, name, reply);
    }

    fn symlink(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _target: &std::path::Path,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn link(&self, _req: &Request, _ino: INodeNo, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.removed(req.pid(), name, reply);
    }

    fn rmdir(&self, req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.removed(req.pid(), name, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }
}

fn events(ready: Ready) -> PollEvents {
    let read = PollEvents::POLLIN | PollEvents::POLLRDNORM;
    let write = PollEvents::POLLOUT | PollEvents::POLLWRNORM;
    [(ready.read, read), (ready.write, write)]
        .into_iter()
        .filter_map(|(is, events)| is.then_some(events))
        .fold(PollEvents::empty(), |all, events| all | events)
}
