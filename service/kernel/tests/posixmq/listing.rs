//! `List()` against the mqueue file system, in namespaces where only this test's queues are.

use ipc_kernel::{
    Kind, Value,
    mechanism::Adoption,
    mechanisms::{self, posixmq::DESCRIPTOR},
};
use rustix::fs::{Mode, OFlags};

use super::{
    alone::{NOBODY, alone, another_ipc_namespace, become_nobody, run},
    *,
};

fn rows() -> Vec<Dict> {
    let rows = DESCRIPTOR.objects().unwrap();
    for row in &rows {
        let known = |key: &String| DESCRIPTOR.columns.iter().any(|column| column.key == key);
        assert!(row.keys().all(known), "{row:?}");
    }
    rows
}

fn row(queue: &Queue) -> Dict {
    let found = rows().into_iter().find(|row| row["name"].same(&queue.0.as_str().into()));
    found.unwrap_or_else(|| panic!("{} is not listed", queue.0))
}

fn holders(row: &Dict) -> Vec<(i128, String)> {
    let Value::Dicts(holders) = &row["holders"] else { panic!("holders are dictionaries") };
    let holder = |holder: &Dict| match &holder["access"] {
        Value::Text(access) => (holder["pid"].integer().unwrap(), access.clone()),
        other => panic!("{other:?}"),
    };
    holders.iter().map(holder).collect()
}

#[test]
fn without_the_file_system_it_says_what_to_do() {
    alone(|| {
        let queue = Queue::new();
        let _endpoint = queue.made();
        attach(&queue.address()).unwrap();
        let help = "mkdir -p /dev/mqueue && mount -t mqueue none /dev/mqueue";
        refused(DESCRIPTOR.objects(), Kind::Unavailable, help);
        (DESCRIPTOR.available)().unwrap();
        // A mount that is covered by another is none.
        run("mount -t mqueue none /mnt && mount -t tmpfs none /mnt");
        refused(DESCRIPTOR.objects(), Kind::Unavailable, help);
    });
}

#[test]
fn it_is_what_the_file_system_has() {
    alone(|| {
        run("mount -t tmpfs none /mnt && mkdir '/mnt/a b' && mount -t mqueue none '/mnt/a b'");
        // Mounted twice, listed once.
        run("mkdir /mnt/c && mount -t mqueue none /mnt/c");
        assert!(rows().is_empty());
        let (first, second, third) = (Queue::new(), Queue::new(), Queue::new());
        let endpoint = create(&format!("{},depth=3,size=64,mode=0640", first.address())).unwrap();
        send(&*endpoint, "four", 0);
        let Some(mut program) = Peer::compiled(PROGRAM) else { return };
        let fd = program.ask(&format!("create {} {WRITE} {} 2 10", second.hex(), 0o600));
        drop(create(&format!("{},depth=1,size=1", third.address())).unwrap());
        let listed = row(&first);
        for (key, value) in
            [("depth", 3), ("size", 64), ("messages", 1), ("bytes", 4), ("mode", 0o640), ("owner", 0)]
        {
            assert_eq!(listed[key].integer(), Some(value), "{key}");
        }
        assert_eq!(listed["inode"].integer(), number(&*endpoint, "inode"));
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as i128;
        let sent = listed["modified"].integer().unwrap();
        assert!((now - 60_000_000..=now).contains(&sent), "{sent} is not about {now}");
        assert_eq!(holders(&listed), [(std::process::id().into(), "read-write".into())]);
        assert!(listed["stale"].same(&false.into()));
        assert!(listed["address"].same(&first.address().as_str().into()));

        let listed = row(&second);
        assert_eq!(holders(&listed), [(program.pid().into(), "write".into())]);
        assert!(listed["stale"].same(&false.into()));
        assert_eq!(program.ask(&format!("close {fd}")), "0");
        assert!(row(&second)["stale"].same(&true.into()), "nobody has it open, and root sees everybody");
        assert!(row(&third)["stale"].same(&true.into()));
        // Through the file system it is the same queue under a longer path.
        let path = format!("/mnt/a b{}", third.0);
        let file = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(holders(&row(&third)), [(std::process::id().into(), "read".into())]);
        drop(file);

        let fd = program.ask(&format!("open {} {READ}", second.hex()));
        assert_eq!(program.ask(&format!("notify {fd}")), "0");
        let listed = row(&second);
        assert_eq!(listed["notify-pid"].integer(), Some(program.pid().into()));
        assert_eq!(listed["notify-signal"].integer(), Some(libc::SIGUSR1.into()));

        let mut names: Vec<String> = std::fs::read_dir("/mnt/c")
            .unwrap()
            .flatten()
            .map(|entry| format!("/{}", entry.file_name().into_string().unwrap()))
            .collect();
        let mut listed: Vec<String> = rows()
            .iter()
            .map(|row| match &row["name"] {
                Value::Text(name) => name.clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        names.sort();
        listed.sort();
        assert_eq!(names, listed);
        assert_eq!(names.len(), 3);
    });
}

#[test]
fn an_ordinary_user_sees_what_the_kernel_shows_him() {
    alone(|| {
        run("mount -t mqueue none /mnt");
        let (roots, own) = (Queue::new(), Queue::new());
        let _endpoint = roots.made();
        become_nobody();
        let endpoint = own.made();
        let listed = row(&roots);
        assert_eq!((listed["owner"].integer(), listed["mode"].integer()), (Some(0), Some(0o600)));
        assert!(!listed.contains_key("depth") && !listed.contains_key("bytes"), "{listed:?}");
        let listed = row(&own);
        assert_eq!((listed["owner"].integer(), listed["depth"].integer()), (Some(NOBODY.into()), Some(3)));
        drop(endpoint);
        assert!(!row(&own).contains_key("stale"), "he cannot know: others may have it open");
    });
}

#[test]
fn a_mount_of_another_ipc_namespace_shows_nothing_of_this_one() {
    alone(|| {
        run("mount -t mqueue none /mnt");
        let (theirs, both) = (Queue::new(), Queue::new());
        let _endpoints = [theirs.made(), both.made()];
        assert_eq!(rows().len(), 2);
        another_ipc_namespace();
        let _endpoint = both.made();
        assert!(std::fs::exists(format!("/mnt{}", theirs.0)).unwrap());
        assert!(rows().is_empty(), "{:?}", rows());
    });
}

#[test]
fn a_path_of_the_file_system_is_adopted_as_a_queue() {
    alone(|| {
        run("mount -t mqueue none /mnt");
        let queue = Queue::new();
        let endpoint = queue.made();
        send(&*endpoint, "x", 0);
        let open =
            |path: &str, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for flags in [OFlags::RDWR, OFlags::PATH] {
            let fd = open(&format!("/mnt{}", queue.0), flags);
            let taker = mechanisms::ALL.iter().try_fold(fd, |fd, row| match (row.adopt)(fd).unwrap() {
                Adoption::Taken(endpoint) => Err((row.name, endpoint)),
                Adoption::Refused(fd) => Ok(fd),
            });
            let Err((name, adopted)) = taker else { panic!("nobody took it") };
            assert_eq!((name, adopted.address().to_string()), ("posixmq", queue.address()));
            assert_eq!(messages(&*adopted).depth(), Some(1));
        }
        assert!(matches!((DESCRIPTOR.adopt)(open("/mnt", OFlags::DIRECTORY)), Ok(Adoption::Refused(_))));
    });
}
