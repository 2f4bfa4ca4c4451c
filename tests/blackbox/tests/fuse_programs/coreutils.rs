//! What coreutils and findutils make of a published file is what they make of a copy on a disk.

use ipc_harness::or_skip;

use crate::{live, refused};

/// Scripts that leave their files as they are; `f` has 100,000 bytes of lines.
const READING: &[&str] = &[
    "cat f",
    "cat f f | cksum",
    "head -c 1000 f",
    "head -n 3 f",
    "head -c -99990 f",
    "tail -c 1000 f",
    "tail -n 3 f",
    "tail -c +99990 f",
    "dd if=f bs=1000 skip=7 count=2 status=none",
    "dd if=f bs=3 iflag=skip_bytes,count_bytes skip=99000 count=100 status=none",
    "wc f; wc -c < f",
    "sha256sum f; md5sum f; cksum f",
    "sort -rn f | head -n 5; uniq -c f | tail -n 2; tac f | head -n 2",
    "od -A d -t x1 -j 500 -N 64 f",
    "split -b 30000 f ../part-; cat ../part-* | cmp - f; rm ../part-*",
    "cut -c 1-3 f | sort -u | wc -l; tr -d 1 < f | wc -c",
    "stat -c '%n %s %F %h %U' f d/e; stat -c %F . d",
    "find . -type f -size +50k; find . -type d | sort; find . -name e -newermt 2001-01-01",
    "du -b f d/e",
    "ls -1R; ls -l f | cut -d ' ' -f 5",
    "grep -c 7 f; grep -rn hello .",
    "cp f ../copy; cmp f ../copy; rm ../copy",
    "cp --sparse=always f ../copy; cmp f ../copy; rm ../copy",
    "cp -a d ../tree; cat ../tree/e; rm -r ../tree",
    "tar -cf - f d | tar -tf - | sort",
    "test -r f && test -w f && test -s f && test -f f && test -d d && echo all; [ f -nt nothing ] && echo newer",
    "realpath --relative-to=. d/e; readlink f || echo no link",
];

/// Scripts that change `f`, which is read afterwards.
const WRITING: &[&str] = &[
    "echo short > f",
    "echo more >> f",
    "printf abc | tee f",
    "printf abc | tee -a f f > ../copy; rm ../copy",
    "cp d/e f",
    "cat d/e d/e > f",
    "dd if=d/e of=f bs=2 seek=3 conv=notrunc status=none",
    "dd if=d/e of=f oflag=append conv=notrunc status=none",
    "dd if=/dev/zero of=f bs=1 count=1 seek=5000 status=none",
    "truncate -s 10 f",
    "truncate -s 4000 f",
    "truncate -s +7 f; truncate -s -3 f; truncate -s %100 f",
    "truncate -r d/e f",
    "seq 100 > f; sort -rn -o f f",
    "seq 9 > f; shuf -o f --random-source=/dev/zero f",
    "> f",
    ": >> f",
    "{ echo one; echo two; } > f; { read line; echo $line; cat; } < f",
    "echo x 1<> f",
    "printf head | cat - d/e > ../new; cat ../new > f; rm ../new",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_do_what_they_do_elsewhere() {
    let (_stage, mount) = or_skip!(live("").await);
    let lines: String =
        (0..).map(|number| format!("{number:07} {}\n", number * 7919 % 1000)).take(9000).collect();
    let first = &lines[..100_000];
    mount.publish_text("f", first).await;
    mount.publish_text("d/e", "hello\n").await;
    let scratch = ipc_harness::temp_dir();
    let model = scratch.path().join("model");
    std::fs::create_dir_all(model.join("d")).expect("an own directory");
    std::fs::write(model.join("f"), first).expect("an own file");
    std::fs::write(model.join("d/e"), "hello\n").expect("an own file");
    // As those of the mount are, and with blocks of 512 bytes.
    let prepare = "chmod 700 d; chmod 600 f d/e";
    ipc_harness::sh(&format!("cd {}; {prepare}", model.display())).finish().success();
    let there = |script: &str| {
        ipc_harness::sh(&format!("export LC_ALL=C; cd {}; {script}", model.display())).finish()
    };
    for script in READING {
        let (ours, theirs) = (mount.script(script).finish(), there(script));
        assert!(
            ours.status == theirs.status && ours.stdout == theirs.stdout,
            "{script}: {ours:?}\nnot {theirs:?}"
        );
    }
    for script in WRITING {
        let script = format!("{script}; cat f; wc -c < f; stat -c %s f");
        let (ours, theirs) = (mount.script(&script).finish(), there(&script));
        assert!(
            ours.status == theirs.status && ours.stdout == theirs.stdout,
            "{script}: {ours:?}\nnot {theirs:?}"
        );
    }
    assert_eq!(
        mount.sh("truncate -s 1025 f; stat -c '%b %B %o' f; du --block-size=1 f"),
        "3 512 4096\n1536\tf\n"
    );
    assert_eq!(mount.sh("du -a -B 512 | sort -k 2"), "4\t.\n1\t./d\n1\t./d/e\n3\t./f\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissions_and_times_are_those_that_were_given() {
    let (_stage, mount) = or_skip!(live(",mode=0640").await);
    mount.publish_text("d/f", "x").await;
    assert_eq!(mount.sh("stat -c '%a %n' . d d/f"), "750 .\n750 d\n640 d/f\n");
    assert_eq!(mount.sh("chmod u=r,go= d/f; chmod a+x d; stat -c %a d d/f"), "751\n400\n");
    assert_eq!(mount.sh("chmod 6755 d/f; stat -c %a d/f"), "755\n", "no set-id bits");
    assert_eq!(mount.sh("touch -d @5.25 d/f; stat -c '%.2X %.2Y' d/f"), "5.25 5.25\n");
    assert_eq!(mount.sh("touch -a -d @9 d/f; stat -c '%X %Y' d/f"), "9 5\n");
    assert_eq!(mount.sh("touch -d @7 ../ref; touch -r ../ref d; stat -c %Y d; rm ../ref"), "7\n");
    assert_eq!(mount.sh("cp -p d/f ../copy; stat -c '%a %Y' ../copy; rm ../copy"), "755 5\n");
    // Whoever writes changes the times: none is older than the file that was just made.
    assert_eq!(mount.sh("touch -d @5 d/f; echo y > d/f; find d/f -newermt @6; cat d/f"), "d/f\ny\n");
    assert_eq!(mount.sh("touch -d @5 d/f; truncate -s 1 d/f; find d/f -newermt @6 -newerct @6"), "d/f\n");
    assert_eq!(mount.sh("touch -d @5 d; find d -type d -newermt @6"), "");
    mount.publish_text("d/new", "").await;
    assert_eq!(mount.sh("find d -type d -newermt @6"), "d\n", "a name was added");
    refused(&mount, "chown 1 d/f", "Operation not permitted");
    refused(&mount, "chgrp 1 d/f", "Operation not permitted");
    assert_eq!(
        mount.sh("chown $(id -u):$(id -g) d/f; stat -c '%u %g' d/f"),
        mount.sh("echo $(id -u) $(id -g)")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_more_are_refused_with_the_errno_that_says_why() {
    let (_stage, mount) = or_skip!(live(",size=64K").await);
    mount.publish_text("d/a", "x").await;
    mount.publish_text("b", "y").await;
    let not_permitted = "Operation not permitted";
    for script in [
        "rm b",
        "rm -rf d",
        "rmdir d",
        "unlink b",
        "mv b c",
        "mv b d/a",
        "mv b d/",
        "mv -T d e",
        "mkdir c",
        "mkdir -p d/c",
        "touch c",
        "echo > c",
        "cp b c",
        "cp -r d c",
        "cp --remove-destination d/a b",
        "ln b c",
        "ln -s b c",
        "mknod c p",
        "mkfifo c",
        "mktemp -p . x.XXXX",
        "echo > ../new; mv ../new b",
        "mv b ../out",
        "chown 12345 b",
    ] {
        refused(&mount, script, not_permitted);
        assert_eq!(mount.sh("find . | sort; cat d/a b"), ".\n./b\n./d\n./d/a\nxy", "after {script}");
    }
    for (script, why) in [
        ("cat c", "No such file or directory"),
        ("cat b/c", "Not a directory"),
        ("cat d", "Is a directory"),
        ("env echo > d", "Is a directory"),
        ("ls b/", "Not a directory"),
        ("rmdir b", "Not a directory"),
        ("mkdir d", "File exists"),
        ("ln -T b d/a", "File exists"),
        ("truncate -s 65 b; truncate -s 65K b", "No space left on device"),
        ("head -c 70000 /dev/zero > b", "No space left on device"),
        ("head -c 70000 /dev/zero | tee -a b", "No space left on device"),
        ("cp /bin/sh b", "No space left on device"),
        ("fallocate -l 100 b", "not supported"),
        ("cat $(printf '%0256d' 0)", "File name too long"),
        ("touch $(printf '%0256d' 0)", "File name too long"),
        ("rmdir .", "Invalid argument"),
        ("rmdir $PWD", "Device or resource busy"),
        ("mv $PWD $PWD.moved", "Device or resource busy"),
    ] {
        refused(&mount, script, why);
    }
    // What was not there to be written was given back.
    mount.sh("truncate -s 0 b; head -c 65000 /dev/zero > b; truncate -s 0 b; printf y > b");
    assert_eq!(mount.sh("cat d/a b"), "xy");
}
