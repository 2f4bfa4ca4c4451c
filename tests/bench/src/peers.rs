//! Who is measured: the service, and the programs beside it. All of them end when their value is dropped.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use ipc_harness::{Address, Bus, Launch, NAME, PATH, Process, Service, need_tool};
use serde::{Serialize, de::DeserializeOwned};
use tokio::runtime::Runtime;
use zbus::{Connection, DynamicType, OwnedObjectPath, OwnedVariant, Variant, connection::Builder, interface};

use std::collections::HashMap;

/// The name of the echo service.
pub const ECHO: &str = "org.example.Echo";
pub const ECHO_PATH: &str = "/org/example/Echo";

/// A runtime for clients: one thread, as the service has.
pub fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")
}

/// A client on a bus, which calls one after the other.
pub struct Client {
    runtime: Runtime,
    connection: Connection,
}

impl Client {
    pub fn new(connect: impl Future<Output = Connection>) -> Result<Client> {
        let runtime = runtime()?;
        let connection = runtime.block_on(connect);
        Ok(Client { runtime, connection })
    }

    pub fn on(bus: &(impl Address + ?Sized)) -> Result<Client> {
        Client::new(ipc_harness::connect(bus))
    }

    /// A method of the service's object at this path.
    pub fn call<B, R>(&self, path: &str, interface: &str, method: &str, body: &B) -> Result<R>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + zbus::Type,
    {
        let call = self.connection.call_method(Some(NAME), path, Some(interface), method, body);
        let reply = self.runtime.block_on(call).with_context(|| format!("{method} of {path}"))?;
        reply.body().deserialize().with_context(|| format!("the reply of {method}"))
    }

    /// The same call so many times, one after the other; what it returned is not looked at.
    pub fn repeat(
        &self,
        destination: Option<&str>,
        path: &str,
        interface: &str,
        method: &str,
        body: &(impl Serialize + DynamicType),
        times: usize,
    ) -> Result<()> {
        self.runtime.block_on(async {
            for _ in 0..times {
                self.connection.call_method(destination, path, Some(interface), method, body).await?;
            }
            Ok(())
        })
    }

    /// Runs anything on the connection.
    pub fn with<T>(&self, run: impl AsyncFnOnce(&Connection) -> T) -> T {
        self.runtime.block_on(run(&self.connection))
    }
}

/// The service on a bus of its own, with a client.
pub struct Ipc {
    client: Client,
    service: Service,
    pub bus: Bus,
}

pub type Options<'a> = HashMap<&'a str, Variant<'a>>;

impl Ipc {
    pub fn start() -> Result<Ipc> {
        Ipc::with_config("")
    }

    /// With this configuration file.
    pub fn with_config(toml: &str) -> Result<Ipc> {
        let bus = Bus::dbus_daemon()?;
        let service = Launch::on(&bus).config(toml).start();
        let client = Client::on(&bus)?;
        Ok(Ipc { client, service, bus })
    }

    pub fn pid(&self) -> i32 {
        self.service.pid()
    }

    /// The program that runs.
    pub fn program(&self) -> Result<PathBuf> {
        fs::read_link(format!("/proc/{}/exe", self.pid())).context("the program of the service")
    }

    pub fn create(&self, address: &str) -> Result<String> {
        self.manager("Create", &(address, Options::new()))
    }

    pub fn adopt(&self, fd: OwnedFd) -> Result<String> {
        self.manager("Adopt", &(zbus::OwnedFd::from(fd), Options::new()))
    }

    pub fn relay(&self, source: &str, sink: &str) -> Result<String> {
        let path = |text| zbus::ObjectPath::try_from(text);
        self.manager("Relay", &(path(source)?, path(sink)?, Options::new()))
    }

    /// One end of an endpoint.
    pub fn open(&self, endpoint: &str, end: &str) -> Result<OwnedFd> {
        let options = Options::from([("end", Variant::from(end))]);
        let fd: zbus::OwnedFd =
            self.client.call(endpoint, "org.example.IPC.Endpoint", "Open", &(options,))?;
        Ok(fd.into())
    }

    pub fn close(&self, endpoint: &str) -> Result<()> {
        self.client.call(endpoint, "org.example.IPC.Endpoint", "Close", &())
    }

    /// Inspect; what it returned is not looked at.
    pub fn inspect(&self, endpoint: &str) -> Result<()> {
        self.client.repeat(Some(NAME), endpoint, "org.example.IPC.Endpoint", "Inspect", &(), 1)
    }

    pub fn stop(&self, relay: &str) -> Result<()> {
        self.client.call(relay, "org.example.IPC.Relay", "Stop", &())
    }

    fn manager(&self, method: &str, body: &(impl Serialize + DynamicType)) -> Result<String> {
        let path: OwnedObjectPath = self.client.call(PATH, NAME, method, body)?;
        Ok(path.to_string())
    }
}

/// `socat -u -b SIZE STDIN STDOUT`, killed on drop.
pub struct Socat(Child);

impl Socat {
    /// Its own buffer size is 8192 bytes.
    pub fn between(source: OwnedFd, sink: OwnedFd, buffer: usize) -> Result<Socat> {
        need_tool("socat")?;
        let mut command = Command::new("socat");
        command.args(["-u", "-b", &buffer.to_string(), "STDIN", "STDOUT"]);
        let child = command.stdin(Stdio::from(source)).stdout(Stdio::from(sink)).spawn();
        Ok(Socat(child.context("socat")?))
    }

    pub fn pid(&self) -> i32 {
        // A pid is never beyond that.
        self.0.id() as i32
    }
}

impl Drop for Socat {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that is killed when it is not needed any more.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The echo service on this bus, as a process of its own.
pub fn echo(bus: &(impl Address + ?Sized)) -> Result<Process> {
    let program = std::env::current_exe().context("the own program")?;
    let process = Process::spawn(Command::new(program).args(["echo", bus.address()]));
    process.wait_for(|line| line == "ready");
    Ok(process)
}

struct Echo;

/// As little as a service can do: the peer of every call.
#[interface(name = "org.example.Echo")]
impl Echo {
    fn echo(&self, text: String) -> String {
        text
    }

    /// Emits so many signals, one after the other, as events of a file would be.
    async fn emit(
        &self,
        count: u32,
        #[zbus(signal_emitter)] emitter: zbus::object_server::SignalEmitter<'_>,
    ) -> zbus::fdo::Result<()> {
        for seq in 1..=u64::from(count) {
            emitter.changed(seq, &["OPEN"], "/tmp/directory/a", "").await?;
        }
        Ok(())
    }

    #[zbus(signal)]
    async fn changed(
        emitter: &zbus::object_server::SignalEmitter<'_>,
        seq: u64,
        events: &[&str],
        path: &str,
        from: &str,
    ) -> zbus::Result<()>;

    /// What Inspect of a pipe returns, without the work of finding it out.
    fn dictionary(&self) -> HashMap<String, OwnedVariant> {
        let numbers = [("capacity", 65536_u64), ("queued", 0), ("inode", 1 << 20)];
        let mut found: HashMap<String, OwnedVariant> =
            numbers.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
        found.extend(["reader", "writer", "packet"].map(|key| (key.to_owned(), true.into())));
        found
    }
}

/// Is the echo service, until its bus or its parent goes.
pub fn be_echo(address: &str) -> Result<()> {
    runtime()?.block_on(async {
        let builder = Builder::address(address).serve_at(ECHO_PATH, Echo);
        let connection = builder.name(ECHO).build().await?;
        println!("ready");
        connection.closed().await;
        Ok(())
    })
}

/// A peer in C, as the distribution's compiler makes it.
pub fn compiled(directory: &Path, name: &str, text: &str) -> Result<PathBuf> {
    need_tool("cc")?;
    let (source, program) = (directory.join(name).with_extension("c"), directory.join(name));
    fs::write(&source, text).context("the source of the peer")?;
    let output = Command::new("cc").args(["-O2", "-o"]).arg(&program).arg(&source).arg("-lrt").output();
    let output = output.context("cc")?;
    ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
    Ok(program)
}

/// CPU seconds that a process has used, to the nanosecond: the times of its threads (proc_pid_schedstat in
/// Documentation/scheduler/sched-stats.rst; a thread that ended is not counted any more).
pub fn cpu_seconds(pid: i32) -> Result<f64> {
    let mut nanoseconds = 0_u64;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the threads of a process")? {
        let text = fs::read_to_string(task?.path().join("schedstat")).context("schedstat")?;
        let first = text.split_whitespace().next().context("an empty schedstat")?;
        nanoseconds += first.parse::<u64>().context("schedstat")?;
    }
    Ok(nanoseconds as f64 / 1e9)
}
