//! The kernel's limits, reached in an IPC namespace of the test's own: refused, released, accepted
//! again. And ids that are given anew, which only a privileged process can arrange.

use ipc_kernel::{Attempt, Dict, Kind, mechanisms::sysvmq::DESCRIPTOR};

use crate::support::*;

/// Runs on a thread in an IPC namespace of its own, which goes with it.
fn in_a_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: a system call without pointers; it changes this thread alone.
            if unsafe { libc::unshare(libc::CLONE_NEWIPC) } != 0 {
                eprintln!("SKIPPED: no IPC namespace: {}", std::io::Error::last_os_error());
                return;
            }
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn sysctl(name: &str, value: i64) {
    std::fs::write(format!("/proc/sys/kernel/{name}"), value.to_string()).unwrap();
}

fn limit(name: &str) -> i128 {
    (DESCRIPTOR.limits)()[name].integer().unwrap()
}

#[test]
fn queues_up_to_msgmni() {
    in_a_namespace(|| {
        sysctl("msgmni", 3);
        assert_eq!((limit("MSGMNI"), limit("queues")), (3, 0));
        let mut queues: Vec<_> = (0..3).map(|_| create("key=private")).collect();
        send(&queues[0], 1, b"12345").unwrap();
        assert_eq!((limit("queues"), limit("messages"), limit("bytes")), (3, 1, 5));
        for key in ["private", "random", "0x1234"] {
            refused(
                try_create(&format!("key={key}")).map(|_| ()),
                Kind::LimitExceeded,
                "kernel.msgmni, now 3",
            );
        }
        refused(try_create("key=private").map(|_| ()), Kind::LimitExceeded, "ENOSPC");
        queues.pop();
        queues.push(create("key=0x1234"));
        assert_eq!(DESCRIPTOR.objects().unwrap().len(), 3);
    });
}

#[test]
fn messages_up_to_msgmax_and_msgmnb() {
    in_a_namespace(|| {
        sysctl("msgmax", 100_000);
        sysctl("msgmnb", 200_000);
        let queue = create("key=private");
        assert_eq!(queue.messages().unwrap().max_message_size(), 100_000);
        let large = vec![7; 100_000];
        send(&queue, 1, &large).unwrap();
        refused(try_send(&queue, &[0; 100_001], &Dict::new()), Kind::TooLarge, "kernel.msgmax");
        assert_eq!(now(&queue, &Dict::new()), Some((1, large.clone())));

        // Larger than any message was when the endpoint was made, and larger than any may be now.
        sysctl("msgmax", 200_000);
        let larger = vec![8; 150_000];
        send(&queue, 2, &larger).unwrap();
        sysctl("msgmax", 10);
        assert_eq!(queue.messages().unwrap().max_message_size(), 10);
        assert_eq!(now(&queue, &Dict::new()), Some((2, larger)));
        refused(try_send(&queue, &[0; 11], &Dict::new()), Kind::TooLarge, "at most 10");

        // qbytes: filled, released, accepted again.
        sysctl("msgmnb", 20);
        let queue = create("key=private");
        assert_eq!(number(&queue, "qbytes"), 20);
        send(&queue, 1, &[0; 10]).unwrap();
        send(&queue, 1, &[0; 10]).unwrap();
        assert!(matches!(try_send(&queue, b"x", &Dict::new()), Ok(Attempt::Wait(_))));
        now(&queue, &Dict::new()).unwrap();
        send(&queue, 1, b"x").unwrap();
    });
}

#[test]
fn another_queue_with_the_same_id_is_not_taken_for_the_first() {
    in_a_namespace(|| {
        let first = create("key=0x111");
        let id = first.id();
        assert_eq!(id, number(&attach("key=0x111").unwrap(), "id"));
        first.remove().unwrap();
        sysctl("msg_next_id", id);
        let second = create("key=0x222");
        assert_eq!(second.id(), id, "the kernel was told to give it anew");
        refused(first.remove(), Kind::Gone, "another one");
        refused(first.inspect(), Kind::Gone, "another one");
        refused(first.set_permissions(Default::default()), Kind::Gone, "another one");
        assert_eq!(second.id(), id, "it was left alone");
    });
}
