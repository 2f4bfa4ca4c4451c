//! What the kernel limits: until it refuses, a release, and on again.

use ipc_kernel::{Error, Kind, mechanisms::posixmq::DESCRIPTOR, mqueue::list::footprint};

use super::{
    alone::{alone, become_user, run},
    *,
};

#[test]
fn the_memory_of_a_user() {
    alone(|| {
        let row = |key: &str| (DESCRIPTOR.limits)()[key].integer();
        let limit = row("RLIMIT_MSGQUEUE").unwrap() as u64;
        let each = footprint(10, 8192);
        // getrlimit(2), on a machine of 64 bits.
        assert_eq!(each, 82_880);
        // Whose queues nobody else makes: the kernel counts them on the whole machine.
        become_user(480_000 + std::process::id() % 10_000);
        let queues: Vec<Queue> = (0..=limit / each).map(|_| Queue::new()).collect();
        let mut made = Vec::new();
        let refusal = queues
            .iter()
            .find_map(|queue| create(&queue.address()).map(|endpoint| made.push(endpoint)).err());
        let Error { kind, text } = refusal.unwrap();
        assert_eq!(kind, Kind::LimitExceeded, "{text}");
        for phrase in ["EMFILE", "RLIMIT_MSGQUEUE", &format!("now {limit}"), "remove queues"] {
            assert!(text.contains(phrase), "{text}");
        }
        assert_eq!(made.len() as u64, limit / each, "as getrlimit(2) says");
        let more = Queue::new();
        let stated = create(&format!("{},depth=10,size=8192", more.address()));
        refused(stated, Kind::LimitExceeded, "its 82880 bytes");
        let Some(mut program) = Peer::compiled(PROGRAM) else { return };
        assert_eq!(program.ask(&format!("create {} {BOTH} 384 0 0", more.hex())), "EMFILE");

        // An unlinked queue counts until it is closed.
        let one = made.pop().unwrap();
        one.remove().unwrap();
        refused(create(&more.address()), Kind::LimitExceeded, "RLIMIT_MSGQUEUE");
        drop(one);
        // A child that another test has just forked may have it open for a moment.
        eventually("there is room again", || create(&more.address()).is_ok());
    });
}

#[test]
fn what_limits_says() {
    alone(|| {
        run("echo 5 > /proc/sys/fs/mqueue/queues_max; echo 3 > /proc/sys/fs/mqueue/msg_default");
        let limits = (DESCRIPTOR.limits)();
        let value = |key: &str| limits[key].integer();
        assert_eq!(value("fs.mqueue.queues_max"), Some(5));
        assert_eq!(value("fs.mqueue.msg_default"), Some(3));
        assert!(value("fs.mqueue.msg_max") > Some(0) && value("fs.mqueue.msgsize_max") > Some(0));
        assert_eq!((value("MQ_PRIO_MAX"), value("NAME_MAX")), (Some(32768), Some(255)));
        assert!(!limits.contains_key("queues"), "without the file system nobody counts them");
        run("mount -t mqueue none /mnt");
        let queue = Queue::new();
        let _endpoint = queue.made();
        let limits = (DESCRIPTOR.limits)();
        assert_eq!(limits["queues"].integer(), Some(1));
        assert_eq!(limits["msgqueue-used"].integer(), Some(footprint(3, 64).into()));
    });
}

/// As large as the limits of a machine allow: the buffer for it is as large.
#[test]
fn the_largest_message() {
    alone(|| {
        run("echo 700000 > /proc/sys/fs/mqueue/msgsize_max");
        let queue = Queue::new();
        let endpoint = create(&format!("{},depth=1,size=700000", queue.address())).unwrap();
        let data: Vec<u8> = (0..700_000).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        assert!(matches!(try_send(&*endpoint, &data, 1), Ok(Attempt::Done(()))));
        let Ok(Attempt::Done(message)) = try_receive(&*endpoint) else { panic!("no message") };
        assert!(message.data == data);
        send(&*endpoint, "small", 1);
        let Ok(Attempt::Done(message)) = try_receive(&*endpoint) else { panic!("no message") };
        assert!(message.data.capacity() < 700_000, "a small message holds no large buffer");
    });
}
