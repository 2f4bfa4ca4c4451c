//! The memory on the machine: the memfds that processes hold or map, and the kernel's limits on
//! shared memory. Beside `mechanisms/mmap.rs`, which makes and opens it.

use std::{collections::BTreeMap, fs};

use rustix::{
    fs::{Mode, OFlags, Stat},
    process::{Resource, getrlimit},
};

use crate::{
    Address, Dict, Error, Kind, Result, Value, dict,
    guard::MAX_MAPPINGS,
    mechanism::Column,
    memory_io,
    proc::{self, Held, Mapped},
};

/// How `/proc/PID/fd` and `/proc/PID/maps` begin the name of a memfd.
pub const MEMFD: &[u8] = b"/memfd:";

pub const COLUMNS: &[Column] = &[
    Column {
        key: "name",
        kind: "s",
        summary: "Name given to memfd_create(2); not unique (ay where it is not UTF-8)",
    },
    Column { key: "inode", kind: "t", summary: "Inode number of the memfd" },
    Column {
        key: "address",
        kind: "s",
        summary: "Address for Attach; absent where no process holds a file descriptor",
    },
    Column { key: "size", kind: "t", summary: "Bytes; absent where it is only mapped" },
    Column { key: "allocated", kind: "t", summary: "Bytes of memory in use" },
    Column { key: "seals", kind: "as", summary: "Seals, where the caller may open it" },
    Column { key: "owner", kind: "u", summary: "User id of the owner" },
    Column { key: "group", kind: "u", summary: "Group id of the owner" },
    Column { key: "mode", kind: "u", summary: "Permission bits" },
    Column {
        key: "holders",
        kind: "aa{sv}",
        summary: "Processes that hold it (pid, command, fd, access) or map it (pid, command, mapped, access)",
    },
];

/// The name in a link such as `/memfd:name (deleted)`.
pub fn memfd_name(link: &[u8]) -> &[u8] {
    let name = link.strip_prefix(MEMFD).unwrap_or(link);
    name.strip_suffix(proc::DELETED).unwrap_or(name)
}

/// What is known of one memfd.
#[derive(Default)]
struct Found {
    name: Vec<u8>,
    stat: Option<Stat>,
    held: Vec<Held>,
    mapped: Vec<Mapped>,
}

/// Every memfd that a process holds or maps, as far as the caller may look into processes.
pub fn memfds() -> Result<Vec<Dict>> {
    // By device too: memfds of huge pages live in a file system of their own.
    let mut found: BTreeMap<(u32, u32, u64), Found> = BTreeMap::new();
    for held in proc::held(|link| link.starts_with(MEMFD)) {
        let Ok(stat) = rustix::fs::stat(proc::fd_path(held.pid, held.fd)) else { continue };
        let key = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev), stat.st_ino);
        let memfd = found.entry(key).or_default();
        memfd.name = memfd_name(&held.link).to_owned();
        memfd.stat = Some(stat);
        memfd.held.push(held);
    }
    for mapped in proc::mapped(|mapped| mapped.path.starts_with(MEMFD)) {
        let memfd = found.entry((mapped.device.0, mapped.device.1, mapped.inode)).or_default();
        if memfd.stat.is_none() {
            memfd.name = memfd_name(&mapped.path).to_owned();
        }
        memfd.mapped.push(mapped);
    }
    Ok(found.into_iter().map(|((_, _, inode), memfd)| row(inode, &memfd)).collect())
}

fn row(inode: u64, memfd: &Found) -> Dict {
    let mut holders = proc::holders(&memfd.held.iter().collect::<Vec<_>>());
    holders.extend(proc::mapped_holders(&memfd.mapped));
    let mut row = dict! { "inode" => inode, "holders" => holders };
    row.insert("name".into(), Value::text_or_bytes(&memfd.name));
    let (Some(stat), Some(first)) = (&memfd.stat, memfd.held.first()) else {
        return row;
    };
    row.extend(dict! {
        "address" => Address::new("mmap").with("inode", inode.to_string()).to_string(),
        "owner" => stat.st_uid,
        "group" => stat.st_gid,
        "mode" => stat.st_mode & 0o7777,
        "size" => u64::try_from(stat.st_size).unwrap_or(0),
        // stat(2) counts in units of 512 bytes.
        "allocated" => u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
    });
    // Opening one to read disturbs nobody.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(proc::fd_path(first.pid, first.fd), flags, Mode::empty())
        && let Ok(seals) = rustix::fs::fcntl_get_seals(&file)
    {
        row.insert("seals".into(), memory_io::names(seals).into());
    }
    row
}

/// The sizes that huge pages have on some machine.
pub const HUGE_NAMES: &[&str] =
    &["64K", "512K", "1M", "2M", "8M", "16M", "32M", "256M", "512M", "1G", "2G", "16G"];

/// The bytes of one of [`HUGE_NAMES`], if the machine has it.
pub fn huge_page(name: &str) -> Result<u64> {
    let (number, shift) = match name.split_at(name.len() - 1) {
        (number, "K") => (number, 10),
        (number, "M") => (number, 20),
        (number, _) => (number, 30),
    };
    // The table lets only powers of two through.
    let bytes = number.parse::<u64>().unwrap_or(1) << shift;
    let sizes = huge_page_sizes();
    if !sizes.contains(&bytes) {
        let sizes: Vec<_> = sizes.iter().map(|bytes| format!("{} KiB", bytes >> 10)).collect();
        return Err(Error::new(
            Kind::Unavailable,
            format!("this machine has no huge pages of {name}; it has {}", sizes.join(", ")),
        ));
    }
    Ok(bytes)
}

/// The sizes of huge pages that this machine has, in bytes, in order.
pub fn huge_page_sizes() -> Vec<u64> {
    let mut sizes: Vec<u64> = fs::read_dir(HUGE)
        .map(|entries| {
            let kib = |name: &str| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok();
            entries.flatten().filter_map(|entry| Some(kib(entry.file_name().to_str()?)? << 10)).collect()
        })
        .unwrap_or_default();
    sizes.sort_unstable();
    sizes
}

const HUGE: &str = "/sys/kernel/mm/hugepages";

/// The kernel's limits on memory files, and this service's.
pub fn limits() -> Dict {
    let mut limits = dict! { "mappings" => MAX_MAPPINGS as u64 };
    for (key, file) in [
        ("vm.memfd_noexec", "vm/memfd_noexec"),
        ("vm.max_map_count", "vm/max_map_count"),
        ("vm.overcommit_memory", "vm/overcommit_memory"),
    ] {
        if let Some(value) = proc::sysctl(file) {
            limits.insert(key.to_owned(), value.into());
        }
    }
    // Absent: no limit.
    for (key, resource) in [
        ("RLIMIT_MEMLOCK", Resource::Memlock),
        ("RLIMIT_FSIZE", Resource::Fsize),
        ("RLIMIT_AS", Resource::As),
    ] {
        if let Some(value) = getrlimit(resource).current {
            limits.insert(key.to_owned(), value.into());
        }
    }
    limits.extend(huge_limits());
    limits
}

/// The huge pages of each size that there are, and that are free.
pub fn huge_limits() -> Dict {
    let mut limits = Dict::new();
    for size in huge_page_sizes() {
        for (key, file) in [("free", "free_hugepages"), ("total", "nr_hugepages")] {
            let path = format!("{HUGE}/hugepages-{}kB/{file}", size >> 10);
            let number = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
            if let Some(number) = number {
                limits.insert(format!("hugepages-{}kB-{key}", size >> 10), number.into());
            }
        }
    }
    limits
}
