//! What the machine shows of all sets, and its limits.

use std::process::Command;

use ipc_kernel::{Attempt, Kind, mechanisms};

use crate::{Key, numbers, peer::*};

#[test]
fn the_list_is_that_of_proc_and_ipcs() {
    let key = Key::new();
    let set = key.make(",values=3+1,mode=0640");
    let id = set.id();
    let rows = mechanisms::by_name("sysvsem").unwrap().objects().unwrap();
    let row = rows.iter().find(|row| row["id"].integer() == Some(id)).unwrap();
    assert!(row["values"].same(&vec![3, 1].into()) && row["count"].same(&2u32.into()));
    // key semid perms nsems uid gid cuid cgid otime ctime
    let proc = std::fs::read_to_string("/proc/sysvipc/sem").unwrap();
    let line = proc.lines().find(|line| line.split_whitespace().nth(1) == Some(&id.to_string())).unwrap();
    let theirs: Vec<i128> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert_eq!(theirs[2], 640, "octal");
    let number = |key: &str| row[key].integer().unwrap();
    let ours = [
        number("key"),
        number("id"),
        640,
        number("count"),
        number("owner"),
        number("group"),
        number("creator-uid"),
        number("creator-gid"),
        number("operated") / 1_000_000,
        number("changed") / 1_000_000,
    ];
    assert_eq!(theirs, ours);
    let Ok(output) = Command::new("ipcs").args(["-s", "-i", &id.to_string()]).output() else {
        eprintln!("SKIPPED: there is no ipcs");
        return;
    };
    // semnum value ncount zcount pid
    let text = String::from_utf8(output.stdout).unwrap();
    let table: Vec<Vec<i128>> = text
        .lines()
        .filter_map(|line| line.split_whitespace().map(|n| n.parse().ok()).collect::<Option<Vec<_>>>())
        .filter(|row| row.len() == 5)
        .collect();
    let [values, waiters, zero, pids] =
        ["values", "waiters", "zero-waiters", "pids"].map(|key| numbers(&row[key]));
    let ours: Vec<Vec<i128>> =
        (0..2).map(|n| vec![n as i128, values[n], waiters[n], zero[n], pids[n]]).collect();
    assert_eq!(table, ours, "{text}");
}

/// Runs this very test in an IPC namespace of its own, with these limits (kernel.sem); true there.
fn in_namespace(test: &str, limits: &str) -> bool {
    if std::env::var_os("SEMAPHORE_LIMITS").is_some() {
        return true;
    }
    if !Command::new("unshare").args(["--ipc", "true"]).status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: unshare --ipc is not possible here");
        return false;
    }
    let before = format!("echo {limits} >/proc/sys/kernel/sem; exec \"$@\"");
    let output = Command::new("unshare")
        .args(["--ipc", "sh", "-ec", &before, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("SEMAPHORE_LIMITS", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

#[test]
fn limits_refuse_release_and_accept_again() {
    // SEMMSL SEMMNS SEMOPM SEMMNI
    if !in_namespace("machine::limits_refuse_release_and_accept_again", "20 30 7 4") {
        return;
    }
    let row = mechanisms::by_name("sysvsem").unwrap();
    let limit = |key: &str| (row.limits)()[key].integer().unwrap();
    assert_eq!(["SEMMSL", "SEMMNS", "SEMOPM", "SEMMNI", "SEMVMX"].map(limit), [20, 30, 7, 4, 32767]);
    let make = |count: u32| create(&format!("sysvsem:key=private,count={count}"));
    refused(make(21), Kind::LimitExceeded, "at most 20 semaphores (SEMMSL");
    let mut made: Vec<_> = (0..4).map(|_| make(1).unwrap()).collect();
    refused(make(1), Kind::LimitExceeded, "4 sets of at most 4 (SEMMNI)");
    assert_eq!(["sets-in-use", "semaphores-in-use"].map(limit), [4, 4]);
    made.pop().unwrap().remove().unwrap();
    let large = make(20).unwrap();
    assert_eq!(["sets-in-use", "semaphores-in-use"].map(limit), [4, 23]);
    made.pop().unwrap().remove().unwrap();
    refused(make(9), Kind::LimitExceeded, "at most 30 (SEMMNS)");
    make(8).unwrap();
    let semaphore = large.semaphore().unwrap();
    refused(semaphore.operate(&[(0, 0, 0); 8]), Kind::TooLarge, "7 (SEMOPM");
    assert!(matches!(semaphore.operate(&[(0, 0, 0); 7]), Ok(Attempt::Done(()))));
}
