//! File systems: what is published is there, under its name, and nothing else is.

use std::{fs, os::unix::fs::MetadataExt};

use ipc_kernel::{
    Attempt, Endpoint, Kind,
    fuse::{file::Published, requests::Upcall},
    shape::{Filesystem, Shape},
};

use crate::{
    driver,
    fixtures::FILESYSTEMS,
    suite::{each, must_fail},
};

fn filesystem(endpoint: &dyn Endpoint) -> &dyn Filesystem {
    endpoint.filesystem().expect("a file system")
}

fn held(bytes: &[u8]) -> Published {
    Published::Held(bytes.to_vec())
}

#[test]
fn what_is_published_is_there_until_it_is_unpublished() {
    each(Shape::Filesystem, FILESYSTEMS, |row, scratch| {
        let endpoint = (row.make)(scratch);
        let files = filesystem(&*endpoint);
        let point = files.mount_point().to_owned();
        files.publish("a", held(b"one")).expect("publish");
        files.publish("d/e/b", held(b"")).expect("publish");
        assert_eq!(fs::read(point.join("a")).expect("read"), b"one");
        files.publish("a", held(b"another")).expect("publish again");
        assert_eq!(fs::read(point.join("a")).expect("read"), b"another");
        let metadata = fs::metadata(point.join("a")).expect("metadata");
        assert_eq!((metadata.len(), metadata.mode() & 0o777, metadata.nlink()), (7, 0o600, 1));
        must_fail("below a file", Kind::Exists, files.publish("a/b", held(b"")));
        must_fail("over a directory", Kind::Exists, files.publish("d", held(b"")));
        must_fail("another kind", Kind::Exists, files.publish("a", Published::Log { shown: true }));
        must_fail("no name", Kind::InvalidArgument, files.publish("", held(b"")));
        let listed = |path| fs::read_dir(path).expect("a directory").flatten().count();
        assert_eq!((listed(point.join("d/e")), listed(point.clone())), (1, 2));
        files.unpublish("d/e/b").expect("unpublish");
        assert_eq!(listed(point.clone()), 1, "directories that are empty go, too");
        must_fail("unpublishing twice", Kind::NotFound, files.unpublish("d/e/b"));
        files.unpublish("a").expect("unpublish");
        assert_eq!(listed(point.clone()), 0);
    });
}

#[test]
fn what_others_do_is_told() {
    each(Shape::Filesystem, FILESYSTEMS, |row, scratch| {
        let endpoint = (row.make)(scratch);
        let files = filesystem(&*endpoint);
        files.publish("a", held(b"one")).expect("publish");
        driver::must_wait("nothing was done", files.next());
        fs::read(files.mount_point().join("a")).expect("read");
        fs::write(files.mount_point().join("a"), "two").expect("write");
        let mut told = Vec::new();
        while told.len() < 2 {
            told.extend(driver::finish("what was done", || files.next()).expect("told"));
        }
        let pid = std::process::id();
        assert!(matches!(&told[0], Upcall::Read { name, pid: by } if name == "a" && *by == pid), "{told:?}");
        assert!(
            matches!(&told[1], Upcall::Written { name, data } if name == "a" && data == b"two"),
            "{told:?}"
        );
    });
}

#[test]
fn a_mount_goes_with_its_endpoint_whoever_uses_it() {
    each(Shape::Filesystem, FILESYSTEMS, |row, scratch| {
        let endpoint = (row.make)(scratch);
        let files = filesystem(&*endpoint);
        let point = files.mount_point().to_owned();
        files.publish("a", held(b"one")).expect("publish");
        let open = fs::File::open(point.join("a")).expect("open");
        endpoint.remove().expect("unmount");
        assert_eq!(fs::read_dir(&point).expect("the directory beneath").count(), 0);
        must_fail("unmounting twice", Kind::Gone, endpoint.remove());
        // What went on before is told; then that it is over.
        let over = loop {
            match files.next() {
                Ok(Attempt::Done(_)) => {}
                other => break other,
            }
        };
        must_fail("after the end", Kind::Gone, over);
        drop((endpoint, open));
        fs::remove_dir(&point).expect("nothing is mounted there any more");
    });
}
