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
    pub limits: Limits,
}

/// Reads the file that was named, else the first of the usual ones that exists.
pub fn load(named: Option<&Path>) -> Result<Config> {
    if let Some(path) = named {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        return parse(&text, path);
    }
    for path in usual() {
        match fs::read_to_string(&path) {
            Ok(text) => return parse(&text, &path),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
    }
    Ok(Config::default())
}

fn usual() -> Vec<PathBuf> {
    let own = match (env::var_os("XDG_CONFIG_HOME"), env::var_os("HOME")) {
        (Some(dir), _) if !dir.is_empty() => Some(PathBuf::from(dir)),
        (_, Some(home)) => Some(PathBuf::from(home).join(".config")),
        _ => None,
    };
    own.map(|dir| dir.join("ipcd.toml")).into_iter().chain([PathBuf::from("/etc/ipcd.toml")]).collect()
}

fn parse(text: &str, path: &Path) -> Result<Config> {
    let config: Config = toml::from_str(text).with_context(|| path.display().to_string())?;
    if let Some((key, value, maximum)) = config.limits.beyond_maximum() {
        let line =
            text.lines().position(|line| line.trim_start().starts_with(key)).map_or(0, |index| index + 1);
        bail!("{}: line {line}: {key} is {value}; at most {maximum} is allowed", path.display());
    }
    Ok(config)
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
        let kind = error("[limits]\nendpoints = \"many\"\n");
        assert!(kind.contains("line 2"), "{kind}");
    }
}
