//! FUSE mounts: what is published in them, and who answers for it.
//!
//! The thread of a mount waits for nobody. What it cannot answer comes from its queue to a task of the mount here,
//! which starts a task for each request ([`published`]); those wait as calls do, but not beyond the mount's
//! deadline.

use std::sync::Arc;

use ipc_kernel::{
    Attempt, Error, Kind, Result,
    fuse::{
        file::{File, Published},
        list,
        requests::{Asked, Upcall},
    },
    mechanism,
    shape::{Filesystem, Shape},
};

use crate::{
    Engine,
    client::Counter,
    endpoint::Endpoint,
    engine::{Object, blocking},
    events::Happening,
    herald::Herald,
    published::{self, Callee, Remote, lines},
    pump::{happened, until_closed},
    wait::until,
};

/// Detaches what services of this user left mounted that were killed.
pub async fn detach_stale() {
    let work = || {
        list::detach_stale();
        Ok(())
    };
    // It fails only when the service ends.
    let _ = blocking(work).await;
}

/// Requests of one mount that wait at once; beyond it they get EAGAIN.
const ASKED: u32 = 256;

impl Endpoint {
    pub fn filesystem(&self) -> Result<&dyn Filesystem> {
        self.kernel.filesystem().ok_or_else(|| self.lacks(Shape::Filesystem))
    }
}

fn filesystem(kernel: &dyn mechanism::Endpoint) -> Result<&dyn Filesystem> {
    kernel.filesystem().ok_or_else(|| Error::not_supported("the endpoint is no file system"))
}

impl Engine {
    /// Publishes bytes that the service holds; those that were published under the name are replaced.
    pub async fn publish(&self, mount: &Arc<Endpoint>, name: &str, data: &[u8]) -> Result<()> {
        self.payload(data.len())?;
        mount.filesystem()?;
        let (name, data) = (name.to_owned(), data.to_owned());
        let publish = move |kernel: &dyn mechanism::Endpoint| {
            filesystem(kernel)?.publish(&name, Published::Held(data)).map(drop)
        };
        self.on_kernel(mount, publish).await
    }

    /// Publishes an endpoint, until it is closed.
    pub fn publish_endpoint(
        self: &Arc<Self>,
        mount: &Arc<Endpoint>,
        name: &str,
        target: &Arc<Endpoint>,
    ) -> Result<()> {
        let file = mount.filesystem()?.publish(name, published::source(target)?)?;
        let follow = matches!(file.body, ipc_kernel::fuse::file::Body::Log(_));
        let (mount, target, name) = (mount.clone(), target.clone(), name.to_owned());
        tokio::spawn(async move {
            attend(&mount, &target, &file, follow).await;
            let withdraw = move || {
                mount.filesystem()?.withdraw(&name, &file);
                Ok(())
            };
            // It fails only when the service ends, and all mounts with it.
            let _ = blocking(withdraw).await;
        });
        Ok(())
    }

    /// Publishes what a herald tells, with what it has kept.
    pub fn publish_herald(&self, mount: &Arc<Endpoint>, name: &str, herald: Arc<Herald>) -> Result<()> {
        let file = mount.filesystem()?.publish(name, Published::Log { shown: true })?;
        let mount = mount.clone();
        tokio::spawn(async move {
            let words = |event: &_| Some(lines::network_words(event));
            let mut seen = 0;
            loop {
                let told = herald.told();
                seen = lines::append(&file, seen, herald.since(seen), words);
                let Some(removal) = file.removal() else { return };
                tokio::select! {
                    () = mount.closed.wait() => return,
                    () = removal => return,
                    () = told => {}
                }
            }
        });
        Ok(())
    }

    /// Publishes a value that another program has.
    pub fn publish_remote(&self, mount: &Arc<Endpoint>, name: &str, value: Arc<dyn Remote>) -> Result<()> {
        let file = mount.filesystem()?.publish(name, published::remote(&value))?;
        let mount = mount.clone();
        tokio::spawn(async move {
            let mut seen = value.version();
            loop {
                let changed = value.changed();
                let version = value.version();
                if version != seen {
                    seen = version;
                    file.change();
                }
                let Some(removal) = file.removal() else { return };
                tokio::select! {
                    () = mount.closed.wait() => return,
                    () = removal => return,
                    () = changed => {}
                }
            }
        });
        Ok(())
    }

    /// Publishes what another program does when it is told something.
    pub fn publish_callee(&self, mount: &Arc<Endpoint>, name: &str, callee: Arc<dyn Callee>) -> Result<()> {
        let file = mount.filesystem()?.publish(name, published::callee(&callee))?;
        let mount = mount.clone();
        tokio::spawn(async move {
            let Some(removal) = file.removal() else { return };
            tokio::select! {
                () = mount.closed.wait() => {}
                () = removal => {}
            }
            drop(callee);
        });
        Ok(())
    }

    pub async fn unpublish(&self, mount: &Arc<Endpoint>, name: &str) -> Result<()> {
        mount.filesystem()?;
        let name = name.to_owned();
        self.on_kernel(mount, move |kernel| filesystem(kernel)?.unpublish(&name)).await
    }
}

/// Follows the events of an endpoint, if it has any, until the endpoint, the mount or the file is gone.
async fn attend(mount: &Endpoint, target: &Endpoint, file: &File, follow: bool) {
    let mut seen = 0;
    loop {
        let pushed = target.events.pushed();
        if follow {
            seen = lines::append(file, seen, target.events.since(seen), lines::words);
        }
        let Some(removal) = file.removal() else { return };
        tokio::select! {
            () = mount.closed.wait() => return,
            () = target.closed.wait() => return,
            () = removal => return,
            () = pushed => {}
        }
    }
}

/// A new endpoint: it is published in the mounts that publish all.
pub(crate) fn entered(engine: &Arc<Engine>, new: &Arc<Endpoint>) {
    let all: Vec<Arc<Endpoint>> = engine
        .objects()
        .into_iter()
        .filter_map(|object| match object {
            Object::Endpoint(endpoint) => Some(endpoint),
            Object::Relay(_) => None,
        })
        .collect();
    let is_tree = |endpoint: &Endpoint| endpoint.kernel.filesystem().is_some_and(Filesystem::has_tree);
    for mount in all.iter().filter(|endpoint| is_tree(endpoint)) {
        let published = if Arc::ptr_eq(mount, new) { all.as_slice() } else { std::slice::from_ref(new) };
        for target in published {
            let name = format!("{}/{}", target.mechanism.name, target.id);
            // What carries nothing is left out, and so is what there is no room for.
            let _ = engine.publish_endpoint(mount, &name, target);
        }
    }
}

/// Starts what the endpoint needs.
pub(crate) fn start_pumps(engine: &Arc<Engine>, endpoint: &Arc<Endpoint>) {
    if endpoint.kernel.filesystem().is_some() {
        let (engine, endpoint) = (engine.clone(), endpoint.clone());
        until_closed(engine.clone(), endpoint.clone(), serve(engine, endpoint));
    }
}

/// Takes what comes from the mount's thread; why no more does.
async fn serve(engine: Arc<Engine>, mount: Arc<Endpoint>) -> Error {
    let asked = Arc::<Counter>::default();
    loop {
        let upcalls = match mount.filesystem().and_then(Filesystem::next) {
            Ok(Attempt::Done(upcalls)) => upcalls,
            Ok(Attempt::Wait(readiness)) => match until(readiness).await {
                Ok(()) => continue,
                Err(error) => return error,
            },
            Err(error) => return error,
        };
        for upcall in upcalls {
            match upcall {
                Upcall::Read { name, pid } => tell(&engine, &mount, Happening::Read { name, pid }).await,
                Upcall::Written { name, data } => {
                    // As much as a signal carries.
                    for data in data.chunks(engine.limits.signal_payload as usize) {
                        let written = Happening::Written { name: name.clone(), data: data.to_owned() };
                        tell(&engine, &mount, written).await;
                    }
                }
                Upcall::Asked(one) => ask(&engine, &mount, &asked, one),
            }
        }
        tokio::task::yield_now().await;
    }
}

/// No faster than it is announced, so that nothing is pushed out of the ring.
async fn tell(engine: &Engine, mount: &Arc<Endpoint>, happening: Happening) {
    while let Some(room) = mount.events.full() {
        engine.announce(Object::Endpoint(mount.clone()));
        room.await;
    }
    happened(engine, mount, happening);
}

fn ask(engine: &Arc<Engine>, mount: &Arc<Endpoint>, asked: &Arc<Counter>, one: Asked) {
    match asked.take(ASKED, "there are too many requests", "requests") {
        Ok(counted) => {
            let (engine, mount) = (engine.clone(), mount.clone());
            tokio::spawn(async move {
                published::answer(&engine, &mount, one).await;
                drop(counted);
            });
        }
        Err(error) => one.refuse(Error { kind: Kind::Busy, ..error }),
    }
}
