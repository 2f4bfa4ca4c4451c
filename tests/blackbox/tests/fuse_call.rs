//! Published methods: what is written to a file calls one, and the answer is read from the same open file.

use std::{collections::HashMap, sync::Arc};

use ipc_blackbox::{Mount, Options, Stage, Way, assert_error, error, mounted, options};
use ipc_harness::{Address, or_skip};
use tokio::sync::Notify;
use zbus::{Connection, DBusError, ObjectPath, OwnedVariant, connection::Builder, fdo, interface};

/// Tells when a call has come that is never answered.
struct Desk(Arc<Notify>);

#[derive(Debug, DBusError)]
#[zbus(prefix = "org.example.Desk.Error")]
enum Refusal {
    #[zbus(error)]
    ZBus(zbus::Error),
    NotToday(String),
}

#[interface(name = "org.example.Desk")]
impl Desk {
    fn echo(&self, text: String) -> String {
        text
    }

    fn bytes(&self, bytes: Vec<u8>) -> Vec<u8> {
        bytes
    }

    fn add(&self, one: i32, other: i32) -> i32 {
        one + other
    }

    fn nothing(&self) {}

    fn notify(&self, app: &str, body: &str, hints: HashMap<String, OwnedVariant>) -> (String, u32) {
        (format!("{app}: {body}"), hints.len() as u32)
    }

    fn refuse(&self, why: String) -> Result<(), Refusal> {
        Err(Refusal::NotToday(why))
    }

    fn deny(&self, why: String) -> fdo::Result<()> {
        Err(fdo::Error::AccessDenied(why))
    }

    async fn hang(&self) {
        self.0.notify_one();
        std::future::pending().await
    }

    fn big(&self, bytes: u32) -> String {
        "x".repeat(bytes as usize)
    }
}

async fn service(stage: &Stage) -> (Connection, Arc<Notify>) {
    let hung = Arc::new(Notify::new());
    let address: zbus::Address = stage.address().parse().expect("an address");
    let builder = Builder::address(address).name("org.example.Desk").serve_at("/desk", Desk(hung.clone()));
    (builder.build().await.expect("a service"), hung)
}

async fn publish(
    mount: &Mount,
    name: &str,
    to: (&str, &str, &str, &str, &str),
    options: Options<'_>,
) -> Result<(), ipc_harness::CallError> {
    let (bus, service, object, interface, method) = to;
    let object = ObjectPath::try_from(object).expect("a path");
    let body = (name, bus, service, object, interface, method, options);
    mount.client.reply(&mount.path, "Filesystem", "PublishCall", &body).await.map(drop)
}

/// All methods of the service, under their names.
async fn published(stage: &Stage) -> Result<(Mount, (Connection, Arc<Notify>)), ipc_harness::Unavailable> {
    let mount = mounted(stage, ",deadline=1500").await?;
    let service = service(stage).await;
    for method in ["Echo", "Bytes", "Add", "Nothing", "Notify", "Refuse", "Deny", "Hang", "Big", "Missing"] {
        let to = (stage.address(), "org.example.Desk", "/desk", "org.example.Desk", method);
        publish(&mount, &method.to_lowercase(), to, Options::new()).await.expect("PublishCall");
    }
    Ok((mount, service))
}

/// Writes, and reads what is answered.
const ASK: &str = r#"ask() { exec 3<>$1; printf "$2\n" >&3; cat <&3; exec 3<&-; }; "#;

/// Proves: fuse create, read, write
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_is_called_by_writing_and_answers_by_reading() {
    for way in [Way::DbusDaemon, Way::DbusBroker, Way::Private] {
        let stage = or_skip!(Stage::new(way));
        let (mount, _service) = or_skip!(published(&stage).await);
        for (script, answer) in [
            ("ask echo 'a \"b\", grüße'", "a \"b\", grüße\n"),
            ("ask add '[40, 2]'", "[42]\n"),
            ("ask nothing ''", ""),
            (r#"ask notify '["me","hello",{"urgency":{"type":"y","data":1}}]'"#, "[\"me: hello\",1]\n"),
            ("ask bytes 'one\\ntwo'", "one\ntwo\n"),
            // An answer is whoever's has asked, and the last one.
            ("exec 3<>echo 4<>echo; echo one >&3; echo two >&4; cat <&3; cat <&4; cat <&3", "one\ntwo\n"),
            ("exec 3<>echo; echo one >&3; echo two >&3; cat <&3", "two\n"),
            ("exec 3<>echo; echo one >&3; head -c 2 <&3; dd bs=1 count=1 status=none <&3; cat <&3", "one\n"),
            // Nothing was asked; and what is only written is not read.
            ("cat echo; echo x > echo; stat -c %s echo", "0\n"),
        ] {
            let said = mount.script(&format!("{ASK}{script}")).finish().success();
            assert_eq!(said, answer, "{script} on {way:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arguments_may_be_a_template() {
    let stage = or_skip!(Stage::new(Way::Private));
    let (mount, _service) = or_skip!(published(&stage).await);
    let to = (stage.address(), "org.example.Desk", "/desk", "org.example.Desk", "Notify");
    let template = options([
        ("signature", "ssa{sv}".into()),
        ("template", r#"["queue", "<{message}>", {}]"#.into()),
        ("flags", vec!["no-auto-start"].into()),
    ]);
    publish(&mount, "told", to, template).await.expect("PublishCall");
    assert_eq!(
        mount.sh("exec 3<>told; echo 'disk \"91%\" full' >&3; cat <&3"),
        "[\"queue: <disk \\\"91%\\\" full>\",0]\n"
    );
    let to = (stage.address(), "org.example.Desk", "/desk", "org.example.Desk", "Echo");
    publish(&mount, "json", to, options([("body", "json".into())])).await.expect("PublishCall");
    assert_eq!(mount.sh("exec 3<>json; echo '[\"x\"]' >&3; cat <&3"), "[\"x\"]\n");
}

/// What goes wrong is the error of write(2), and can be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_fails_fails_the_write_and_says_why() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let (mount, (service, hung)) = or_skip!(published(&stage).await);
    let script = r#"
import errno
f = os.open(sys.argv[2], os.O_RDWR)
try: os.write(f, sys.argv[3].replace('NUL', '\0').encode()); print('OK')
except OSError as error: print(errno.errorcode[error.errno], os.read(f, 9999).decode().strip())
"#;
    let fails = async |file: &str, text: &str, errno: &str, phrases: &[&str]| {
        let said = mount.python(script, &[file, text]).finish().success();
        assert!(said.starts_with(errno), "{file} {text}: {said}");
        phrases
            .iter()
            .for_each(|phrase| assert!(said.contains(phrase), "{file} {text} must say {phrase}: {said}"));
    };
    fails("refuse", "it is late", "EIO", &["org.example.Desk.Error.NotToday: it is late"]).await;
    fails("deny", "you", "EACCES", &["org.freedesktop.DBus.Error.AccessDenied: you"]).await;
    fails(
        "missing",
        "\n",
        "ENOENT",
        &["no method Missing of the interface org.example.Desk", "give signature"],
    )
    .await;
    fails("add", "[1]", "EINVAL", &["JSON array of the 2 arguments", "\"ii\""]).await;
    fails("add", "1 2", "EINVAL", &["JSON array"]).await;
    fails("add", "[1, 2147483648]", "EINVAL", &["argument 1"]).await;
    fails("nothing", "x", "EINVAL", &["JSON array of the 0 arguments"]).await;
    fails("echo", "aNULb", "EINVAL", &["zero byte"]).await;
    fails("hang", "\n", "EIO", &["before the deadline of the mount"]).await;
    hung.notified().await;
    // The others go on.
    fails("add", "[1,2]", "OK", &[]).await;
    // It leaves while a call waits, and before one.
    let waits = mount.python(script, &["hang", "\n"]);
    hung.notified().await;
    service.close().await.expect("leaving the bus");
    let said = waits.finish().success();
    assert!(said.starts_with("EIO"), "{said}");
    fails("echo", "x", "ENOENT", &["nobody has the name org.example.Desk"]).await;
    // Back again.
    let _service = self::service(&stage).await;
    assert_eq!(mount.sh("exec 3<>echo; echo back >&3; cat <&3"), "back\n");
    mount.unpublish("echo").await;
    let gone = mount.script("echo x > echo").finish();
    assert!(!gone.status.success(), "an unpublished file is none");
}

/// Megabytes, in one write(2) or by many readers at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_and_many_calls() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let (mount, _service) = or_skip!(published(&stage).await);
    let script = r#"
import errno, select, threading
f = os.open('big', os.O_RDWR)
poll = select.poll(); poll.register(f, select.POLLIN)
assert not poll.poll(0), 'nothing was asked'
os.write(f, b'[1048576]')
assert poll.poll(0), 'it is answered'
parts = []
while part := os.read(f, 5000): parts.append(part)
assert b''.join(parts) == b'x' * 1048576 + b'\n', sum(map(len, parts))
assert not poll.poll(0), 'it was read'
f = os.open('bytes', os.O_RDWR)
data = bytes(range(256)) * 2048
assert os.write(f, data) == len(data)
got = b''
while part := os.read(f, 1 << 20): got += part
assert got == data, len(got)
try: os.write(f, bytes(3 << 20)); print('written')
except OSError as error: print(errno.errorcode[error.errno])
def ask(number):
    f = os.open('echo', os.O_RDWR)
    for round in range(20):
        text = f'{number} {round}'.encode()
        os.write(f, text)
        assert os.read(f, 100) == text + b'\n'
    os.close(f)
threads = [threading.Thread(target=ask, args=[number]) for number in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print('done')
"#;
    assert_eq!(mount.python(script, &[]).finish().success(), "EMSGSIZE\ndone\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_called_is_named() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let mount = or_skip!(mounted(&stage, "").await);
    let bus = stage.address();
    let none = Options::new;
    for (to, given, name, phrase) in [
        ((bus, "org.example.IPC", "/a", "a.b", "M"), none(), "InvalidArgument", "own name"),
        (("tcp:host=127.0.0.1,port=1", "a.b", "/a", "a.b", "M"), none(), "InvalidArgument", "unix:path="),
        ((bus, "a..b", "/a", "a.b", "M"), none(), "InvalidArgument", "name on a bus"),
        ((bus, "a.b", "/a", "ab", "M"), none(), "InvalidArgument", "interface name"),
        ((bus, "a.b", "/a", "a.b", "1"), none(), "InvalidArgument", "member name"),
        (
            (bus, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "RequestName"),
            none(),
            "NotSupported",
            "the service's own",
        ),
        (
            (bus, "a.b", "/a", "a.b", "M"),
            options([("signature", "z".into())]),
            "InvalidArgument",
            "signature",
        ),
        (
            (bus, "a.b", "/a", "a.b", "M"),
            options([("template", "[]".into())]),
            "InvalidArgument",
            "\"signature\"",
        ),
        (
            (bus, "a.b", "/a", "a.b", "M"),
            options([("flags", vec!["no-reply-expected"].into())]),
            "InvalidArgument",
            "no-auto-start",
        ),
        ((bus, "a.b", "/a", "a.b", "M"), options([("speed", 9u32.into())]), "InvalidArgument", "\"speed\""),
    ] {
        assert_error(&error(publish(&mount, "x", to, given).await), name, &[phrase]);
    }
}
