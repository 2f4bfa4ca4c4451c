//! Declared endpoints and relays: files in a directory say what is to be there, and it is there.
//!
//! [`directory`] finds and watches the files, [`file`] reads one, [`unit`] keeps one object there. Here is what joins
//! them: the difference between what runs and what the files say now. Only what has changed is ended and made; of a
//! file that cannot be used, what ran before goes on.

mod directory;
mod file;
mod unit;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use ipc_bus::Tree;
use ipc_engine::{declared::Declared, flag::Flag};
use ipc_kernel::mechanisms::Register;
use tokio::{
    signal::unix::Signal,
    sync::{Notify, watch},
    task::JoinSet,
};

pub use self::directory::Directories;
use self::{
    directory::{Files, Watcher},
    file::{Declaration, Declarations},
    unit::{Place, Unit},
};

/// Says what is wrong with the files, line by line; Err if something is.
pub fn check(directories: &Directories, register: Register) -> Result<()> {
    let files = directories.read(register);
    let problems: Vec<_> = files.values().filter_map(|file| file.as_ref().err()).flatten().collect();
    if problems.is_empty() {
        let declared: usize = files.values().flatten().map(BTreeMap::len).sum();
        println!("the declarations are valid: {} files, {declared} endpoints and relays", files.len());
        return Ok(());
    }
    for problem in &problems {
        eprintln!("{problem}");
    }
    bail!("the declarations have {} errors", problems.len());
}

/// Keeps there what the files declare, until it is dropped; SIGHUP reads them again and tries at once what waits.
pub async fn keep(tree: Arc<Tree>, directories: Directories, mut hangup: Signal) {
    let mut keeper = Keeper { tree, running: BTreeMap::new(), tasks: JoinSet::new(), again: Arc::default() };
    loop {
        // Before they are read: a change meanwhile is another one.
        let watcher = Watcher::new(&directories)
            .inspect_err(|error| {
                tracing::warn!("relays.d cannot be watched, changes are read on SIGHUP only: {error}");
            })
            .ok();
        if let Err(error) = keeper.reload(&directories).await {
            tracing::error!("relays.d: {error:#}");
        }
        let changed = async {
            match &watcher {
                Some(watcher) => watcher.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changed => if let Err(error) = changed {
                tracing::warn!("relays.d is not watched any more, until SIGHUP: {error}");
                hangup.recv().await;
            },
            _ = hangup.recv() => keeper.again.notify_waiters(),
        }
    }
}

/// By file and name.
type Key = (String, String);

struct Running {
    declaration: Declaration,
    unit: Arc<Unit>,
    /// Where the endpoint is, of one.
    place: Option<Place>,
    ended: Arc<Flag>,
}

struct Keeper {
    tree: Arc<Tree>,
    running: BTreeMap<Key, Running>,
    /// Ended with the keeper.
    tasks: JoinSet<()>,
    again: Arc<Notify>,
}

impl Keeper {
    async fn reload(&mut self, directories: &Directories) -> Result<()> {
        let (directories, register) = (directories.clone(), self.tree.engine.mechanisms);
        let files =
            tokio::task::spawn_blocking(move || directories.read(register)).await.context("reading")?;
        let wanted = self.wanted(files);
        self.end(&wanted).await;
        self.begin(wanted);
        // Those that have ended.
        while self.tasks.try_join_next().is_some() {}
        Ok(())
    }

    /// What is to be there, and on the board what cannot be used.
    fn wanted(&self, files: Files) -> HashMap<Key, Declaration> {
        let board = &self.tree.engine.declared;
        for row in board.rows().into_iter().filter(|row| row.name.is_empty()) {
            board.remove(&row.file, "");
        }
        let mut wanted = HashMap::new();
        for (file, read) in files {
            let declarations = read.unwrap_or_else(|problems| {
                let why: Vec<_> = problems.iter().map(ToString::to_string).collect();
                why.iter().for_each(|problem| tracing::error!("{problem}"));
                let invalid = Declared {
                    file: file.clone(),
                    name: String::new(),
                    state: "invalid",
                    why: why.join("\n"),
                    object: None,
                };
                board.set(invalid);
                self.before(&file)
            });
            wanted.extend(declarations.into_iter().map(|(name, it)| ((file.clone(), name), it)));
        }
        wanted
    }

    /// What the file declared when it could be used.
    fn before(&self, file: &str) -> Declarations {
        let of_file = self.running.iter().filter(|((of, _), _)| of == file);
        of_file.map(|((_, name), running)| (name.clone(), running.declaration.clone())).collect()
    }

    /// Ends what is not wanted, or in another way; relays before their endpoints.
    async fn end(&mut self, wanted: &HashMap<Key, Declaration>) {
        let all = std::mem::take(&mut self.running).into_iter();
        let (stay, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.partition(|(key, it)| wanted.get(key) == Some(&it.declaration));
        self.running = stay;
        let (endpoints, relays): (Vec<_>, Vec<_>) = gone.into_iter().partition(|(_, it)| it.place.is_some());
        for group in [relays, endpoints] {
            for (_, running) in &group {
                running.unit.gone.set();
            }
            for (_, running) in &group {
                running.ended.wait().await;
            }
        }
    }

    /// Begins what is not there; endpoints before their relays.
    fn begin(&mut self, wanted: HashMap<Key, Declaration>) {
        let new = wanted.into_iter().filter(|(key, _)| !self.running.contains_key(key));
        let (endpoints, relays): (Vec<_>, Vec<_>) =
            new.partition(|(_, declaration)| matches!(declaration, Declaration::Endpoint(_)));
        for (key, declaration) in endpoints.into_iter().chain(relays) {
            self.begin_one(key, declaration);
        }
    }

    fn begin_one(&mut self, key: Key, declaration: Declaration) {
        let unit = Arc::new(Unit {
            tree: self.tree.clone(),
            file: key.0.clone(),
            name: key.1.clone(),
            gone: Flag::new(),
            again: self.again.clone(),
            said: Default::default(),
        });
        let ended = Arc::new(Flag::new());
        let (task, over) = (unit.clone(), ended.clone());
        let place = match declaration.clone() {
            Declaration::Endpoint(wanted) => {
                let (place, there) = watch::channel(None);
                self.tasks.spawn(async move {
                    task.keep_endpoint(wanted, place).await;
                    over.set();
                });
                Some(there)
            }
            Declaration::Relay(wanted) => {
                let place = |name: &String| self.running.get(&(key.0.clone(), name.clone()))?.place.clone();
                // The reader of the file has found all of them.
                let Some(ends) = wanted.names.iter().map(place).collect::<Option<Vec<_>>>() else { return };
                self.tasks.spawn(async move {
                    task.keep_relay(*wanted, ends).await;
                    over.set();
                });
                None
            }
        };
        self.running.insert(key, Running { declaration, unit, place, ended });
    }
}
