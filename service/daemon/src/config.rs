//! The configuration file: TOML, every key known, every error with its line.

use std::{
    env, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use ipc_engine::Limits;
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Of the process that holds the objects; on the system bus, of each user's worker.
    pub limits: Limits,
    /// Of the front on the system bus.
    pub front: ipc_front::Limits,
}

/// Reads the file that was named, else the first of the usual ones that exists.
pub fn load(named: Option<&Path>) -> Result<Config> {
    if let Some(path) = named {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        return parse(&text, path);
    }
    first_of(usual())
}

/// The same on the system bus, where no user's file counts.
pub fn load_system(named: Option<&Path>) -> Result<Config> {
    match named {
        Some(_) => load(named),
        None => first_of(vec![PathBuf::from(SYSTEM)]),
    }
}

const SYSTEM: &str = "/etc/ipcd.toml";

fn first_of(paths: Vec<PathBuf>) -> Result<Config> {
    for path in paths {
        match fs::read_to_string(&path) {
            Ok(text) => return parse(&text, &path),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
    }
    Ok(Config::default())
}

fn usual() -> Vec<PathBuf> {
    home().map(|dir| dir.join("ipcd.toml")).into_iter().chain([PathBuf::from(SYSTEM)]).collect()
}

/// Where a user's configuration lies (XDG Base Directory Specification).
pub fn home() -> Option<PathBuf> {
    match (env::var_os("XDG_CONFIG_HOME"), env::var_os("HOME")) {
        (Some(dir), _) if !dir.is_empty() => Some(PathBuf::from(dir)),
        (_, Some(home)) => Some(PathBuf::from(home).join(".config")),
        _ => None,
    }
}

fn parse(text: &str, path: &Path) -> Result<Config> {
    let config: Config = toml::from_str(text).with_context(|| path.display().to_string())?;
    let of_section = |section: &'static str, beyond: Option<(&'static str, u32, u32)>| {
        beyond.map(|(key, value, maximum)| (section, key, value, maximum))
    };
    let beyond = of_section("limits", config.limits.beyond_maximum())
        .or_else(|| of_section("front", config.front.beyond_maximum()));
    if let Some((section, key, value, maximum)) = beyond {
        let line = line_of(text, section, key);
        bail!("{}: line {line}: {key} is {value}; at most {maximum} is allowed", path.display());
    }
    Ok(config)
}

/// The number of the line where a key of a section is set. Both sections know some of the same keys.
fn line_of(text: &str, section: &str, key: &str) -> usize {
    let mut within = String::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            within = name.trim().to_owned();
        } else if within == section && line.split('=').next().is_some_and(|name| name.trim() == key) {
            return index + 1;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        format!("{:#}", parse(text, Path::new("ipcd.toml")).expect_err(text))
    }

    #[test]
    fn reads_limits() {
        let config = parse("[limits]\nendpoints = 7\n", Path::new("ipcd.toml")).expect("valid");
        assert_eq!(config.limits, Limits { endpoints: 7, ..Limits::default() });
    }

    #[test]
    fn errors_name_the_file_and_the_line() {
        let unknown = error("[limits]\nendpoints = 7\nendpoint = 8\n");
        assert!(unknown.contains("ipcd.toml") && unknown.contains("line 3"), "{unknown}");
        assert!(unknown.contains("unknown field `endpoint`"), "{unknown}");
        let section = error("\n[limit]\nendpoints = 7\n");
        assert!(section.contains("line 2") && section.contains("unknown field `limit`"), "{section}");
        let large = error("[limits]\n\nendpoints = 100000\n");
        assert!(large.contains("line 3") && large.contains("4096"), "{large}");
        let front = error("[limits]\ncalls = 9\n[front]\ncalls = 100000\n");
        assert!(front.contains("line 4") && front.contains("calls is 100000"), "{front}");
        let kind = error("[limits]\nendpoints = \"many\"\n");
        assert!(kind.contains("line 2"), "{kind}");
    }
}
