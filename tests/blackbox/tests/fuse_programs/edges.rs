//! The edges: names of every kind, deep directories, as many files and bytes as there may be.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use ipc_blackbox::{Mount, Options, assert_error, error, mountinfo, options};
use ipc_harness::{CallError, or_skip};

use crate::{live, refused};

async fn publish(mount: &Mount, name: &str, data: &[u8]) -> Result<(), CallError> {
    mount.client.reply(&mount.path, "Filesystem", "Publish", &(name, data)).await.map(drop)
}

/// Proves: fuse create, read, write
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_may_have_every_byte_that_files_may() {
    let (_stage, mount) = or_skip!(live("").await);
    let long = "ü".repeat(127) + "x";
    let mut names: Vec<String> = [
        " ",
        "a b",
        "new\nline",
        "tab\t",
        "-rf",
        "--",
        "*",
        "?",
        "$(date)",
        "`id`",
        "\"quoted\"",
        "it's",
        "\\",
        "%s",
        "\u{1}\u{1f}\u{7f}",
        "ünïcödé",
        "日本語",
        "🦀",
        "e\u{301}",
        "\u{200f}rtl",
        "...",
        ".hidden",
        "a.",
        "~",
        "#",
        "..a",
    ]
    .map(str::to_owned)
    .into();
    names.extend(["x".repeat(255), long]);
    for name in &names {
        let text = format!("<{name}>");
        mount.publish_text(name, &text).await;
        let path = mount.directory.join(name);
        assert_eq!(std::fs::read_to_string(&path).expect("a file"), text, "{name:?}");
        std::fs::write(&path, "written").expect("a file");
    }
    let script = "print(sorted(os.listdir(b'.')) == sorted(os.fsencode(name) for name in sys.argv[2:]))";
    let arguments: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(mount.python(script, &arguments).finish().success(), "True\n");
    assert_eq!(mount.sh("find . -type f -print0 | xargs -0 cat | wc -c"), format!("{}\n", 7 * names.len()));
    // No name is like that, so nothing of the kind is there.
    let strange = mount.directory.join(OsStr::from_bytes(b"\xff\xfe"));
    assert_eq!(std::fs::read(&strange).expect_err("missing").kind(), std::io::ErrorKind::NotFound);
    let written = std::fs::write(&strange, "").expect_err("not to be made");
    assert_eq!(written.raw_os_error(), Some(rustix::io::Errno::PERM.raw_os_error()));
    for (name, phrase) in [
        ("", "empty part"),
        ("/", "empty part"),
        ("/abs", "empty part"),
        ("a//b", "empty part"),
        ("end/", "empty part"),
        (".", ". or .."),
        ("a/../b", ". or .."),
        (&"x".repeat(256), "256 bytes; 255 are the most"),
        (&"ü".repeat(128), "256 bytes; 255 are the most"),
        (&["d"; 33].join("/"), "33 parts; 32 are the most"),
    ] {
        assert_error(&error(publish(&mount, name, b"").await), "InvalidArgument", &[phrase]);
        let gone = mount.client.reply(&mount.path, "Filesystem", "Unpublish", &(name,)).await;
        assert_error(&error(gone), "InvalidArgument", &[phrase]);
    }
    for name in &names {
        mount.unpublish(name).await;
    }
    assert_eq!(mount.sh("ls -A"), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_are_as_deep_as_they_may_be() {
    let (_stage, mount) = or_skip!(live("").await);
    let deepest = ["d"; 32].join("/");
    mount.publish_text(&deepest, "deep").await;
    let long = vec!["n".repeat(255); 32].join("/");
    mount.publish_text(&long, "longer than PATH_MAX").await;
    assert_eq!(mount.sh(&format!("cat {deepest}; find d | wc -l; du -a d | wc -l")), "deep32\n32\n");
    // A path of 8 KiB is reached from directory to directory only.
    let script = "
for part in sys.argv[2].split('/')[:-1]: os.chdir(part)
print(open(sys.argv[2].split('/')[-1]).read(), os.stat('..').st_nlink)
";
    assert_eq!(mount.python(script, &[&long]).finish().success(), "longer than PATH_MAX 3\n");
    refused(&mount, &format!("cat {long}"), "File name too long");
    assert_eq!(mount.sh(&format!("cat d/d/../d/../../{deepest}")), "deep");
    // What is empty goes, up to the top.
    mount.publish_text("d/other", "").await;
    mount.unpublish(&deepest).await;
    assert_eq!(mount.sh("find d"), "d\nd/other\n");
    mount.unpublish(&long[..255]).await;
    mount.unpublish("d").await;
    assert_eq!(mount.sh("find ."), ".\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_files_are_listed_and_no_more() {
    let (_stage, mount) = or_skip!(live("").await);
    let names: Vec<String> = (0..1024).map(|number| format!("directory/file {number:04}")).collect();
    for name in &names {
        mount.publish_text(name, "x").await;
    }
    assert_eq!(
        mount.sh("ls directory | wc -l; find . -type f | wc -l; ls -U directory | sort -c; echo sorted"),
        "1024\n1024\nsorted\n"
    );
    assert_eq!(mount.sh("cat directory/* | wc -c; stat -f -c '%c %d' ."), "1024\n1024 0\n");
    assert_error(&error(publish(&mount, "one more", b"").await), "LimitExceeded", &["1024 files", "files=N"]);
    mount.publish_text(&names[7], "another").await;
    // A listing that goes on while names come and go has each that stays exactly once.
    let script = "
listing = os.scandir('directory')
first = [next(listing).name for _ in range(3)]
print('reading', flush=True)
sys.stdin.readline()
names = first + [entry.name for entry in listing]
stay = [name for name in names if int(name.split()[1]) % 2 == 0]
print(len(stay), len(set(names)) == len(names))
";
    let mut reader = mount.python(script, &[]);
    reader.wait_for(|line| line == "reading");
    for name in names.iter().skip(1).step_by(2) {
        mount.unpublish(name).await;
    }
    reader.write("\n");
    assert_eq!(reader.finish().success(), "reading\n512 True\n");
    mount.publish_text("one more", "").await;
    mount.unpublish("directory").await;
    assert_eq!(mount.sh("ls; stat -f -c '%c %d' ."), "one more\n1024 1023\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_counted_to_the_last_one() {
    let (_stage, mount) = or_skip!(live(",size=4096,files=3").await);
    publish(&mount, "a", &[b'a'; 4096]).await.expect("as many as there may be");
    for one_more in [
        "env printf x >> a",
        "truncate -s 4097 a",
        "printf x | dd of=a bs=1 seek=4096 conv=notrunc status=none",
    ] {
        refused(&mount, one_more, "No space left on device");
        assert_eq!(mount.sh("stat -c %s a"), "4096\n", "{one_more}");
    }
    assert_error(
        &error(publish(&mount, "b", b"x").await),
        "LimitExceeded",
        &["4096 of 4096 bytes", "size=N"],
    );
    assert_error(&error(publish(&mount, "a", &[0; 4097]).await), "LimitExceeded", &["size=N"]);
    publish(&mount, "b", b"").await.expect("nothing takes no room");
    mount.sh("truncate -s 4000 a; head -c 96 /dev/zero > b");
    refused(&mount, "env printf x >> b", "No space left on device");
    assert_eq!(mount.sh("df --output=size,avail -B1 . | tail -n 1 | tr -s ' '"), " 4096 0\n");
    // Whoever has it open keeps it, and its bytes with it.
    let mut holder = mount.python("f = os.open('a', os.O_RDONLY); print('open', flush=True); sys.stdin.readline(); print(len(os.read(f, 9999)))", &[]);
    holder.wait_for(|line| line == "open");
    mount.unpublish("a").await;
    assert_error(&error(publish(&mount, "c", &[0; 97]).await), "LimitExceeded", &["size=N"]);
    holder.write("\n");
    holder.wait_for(|line| line == "4000");
    holder.finish().success();
    let freed = async { while publish(&mount, "c", &[0; 4000]).await.is_err() {} };
    ipc_harness::watchdog(ipc_harness::patience(), freed).await;
    // A log takes its 64 KiB at once.
    let mailbox = mount.client.create("signal:number=SIGUSR2").await;
    let to = ("log", zbus::ObjectPath::try_from(mailbox.as_str()).expect("a path"));
    let none = mount.client.reply(&mount.path, "Filesystem", "PublishEndpoint", &to).await;
    assert_error(&error(none), "LimitExceeded", &["size=N"]);
    // A call carries 1 MiB.
    let (_stage, mount) = or_skip!(live(",size=2M").await);
    publish(&mount, "a", &vec![b'x'; 1 << 20]).await.expect("the most");
    assert_eq!(mount.sh("wc -c < a; tr -d x < a | wc -c"), "1048576\n0\n");
    assert_error(&error(publish(&mount, "a", &vec![0; (1 << 20) + 1]).await), "TooLarge", &["payload"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_have_the_bounds_that_they_say() {
    let (_stage, mount) = or_skip!(live(",size=256M,files=16384,deadline=60000,mode=0").await);
    assert_eq!(mount.sh("stat -c %a ."), "0\n");
    let client = &mount.client;
    for (setting, phrases) in [
        ("size=4095", ["size", "4096"]),
        ("size=268435457", ["size", "268435456"]),
        ("size=257M", ["size", "268435456"]),
        ("size=x", ["size", "number"]),
        ("files=0", ["files", "16384"]),
        ("files=16385", ["files", "16384"]),
        ("files=-1", ["files", "number"]),
        ("deadline=0", ["deadline", "60000"]),
        ("deadline=60001", ["deadline", "60000"]),
        ("mode=1000", ["set-id", "1000"]),
        ("mode=8", ["mode", "octal"]),
        ("tree=maybe", ["tree", "true"]),
        ("readable=true", ["readable", "no key"]),
    ] {
        let made = client.try_create(&format!("fuse:path=/x,{setting}"), Options::new()).await;
        let why = error(made);
        assert!(why.is("InvalidArgument") || why.is("InvalidAddress"), "{setting}: {why}");
        phrases
            .iter()
            .for_each(|phrase| assert!(why.text.contains(phrase), "{setting} must say {phrase}: {why}"));
    }
    assert_error(&error(client.try_create("fuse:", Options::new()).await), "InvalidArgument", &["path"]);
    // A mount point may have any name, given as bytes.
    let scratch = ipc_harness::temp_dir();
    let strange = scratch.path().join(OsStr::from_bytes(b"a b\n\\040,=%\xff"));
    std::fs::create_dir(&strange).expect("a directory");
    let path = options([("path", strange.as_os_str().as_bytes().to_vec().into())]);
    let strange_mount = client.create_with("fuse:", path).await;
    let to = ("f", "text");
    client.reply(&strange_mount, "Filesystem", "PublishText", &to).await.expect("PublishText");
    assert_eq!(std::fs::read_to_string(strange.join("f")).expect("a file"), "text");
    client.close(&strange_mount).await;
    assert_eq!(std::fs::read_dir(&strange).expect("a directory").count(), 0);
    client.close(&mount.path).await;
    assert!(mountinfo(&mount.directory).is_empty());
}
