//! Which paths are told: the globs of `include` and `exclude`.
//!
//! A glob with a slash is matched against the path below the watched directory, one without against the
//! last name, at any depth, as in .gitignore. `*` and `?` stop at a slash, `**` does not.

use globset::{GlobBuilder, GlobMatcher};

use crate::{Error, Parameters, Result};

#[derive(Debug, Default)]
pub struct Filter {
    include: Option<GlobMatcher>,
    exclude: Option<GlobMatcher>,
}

impl Filter {
    pub fn new(parameters: &Parameters) -> Result<Self> {
        Ok(Self { include: glob(parameters, "include")?, exclude: glob(parameters, "exclude")? })
    }

    /// Whether a directory below the watched one is left out with all that is in it. `below` is the path
    /// from the watched directory on, without a slash in front.
    pub fn prunes(&self, below: &[u8]) -> bool {
        matches(self.exclude.as_ref(), below)
    }

    /// Whether what happens to this path is told. That of the watched directory itself (empty) always is.
    pub fn tells(&self, below: &[u8]) -> bool {
        below.is_empty()
            || (self.include.is_none() || matches(self.include.as_ref(), below)) && !self.prunes(below)
    }
}

fn matches(glob: Option<&GlobMatcher>, below: &[u8]) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::OsStr::from_bytes(below);
    glob.is_some_and(|glob| glob.is_match(path))
}

fn glob(parameters: &Parameters, key: &str) -> Result<Option<GlobMatcher>> {
    let Some(text) = parameters.text(key) else { return Ok(None) };
    let anywhere =
        if text.contains('/') { text.trim_start_matches('/').to_owned() } else { format!("**/{text}") };
    let built = GlobBuilder::new(&anywhere).literal_separator(true).backslash_escape(true).build();
    let glob = built.map_err(|error| {
        Error::invalid(format!(
            "the key {key:?} must be a glob such as *.txt, {{*.o,*.tmp}} or target/**, not {text:?}: {}",
            error.kind()
        ))
    })?;
    Ok(Some(glob.compile_matcher()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Value;

    fn filter(include: Option<&str>, exclude: Option<&str>) -> Result<Filter> {
        let mut options = crate::Dict::new();
        for (key, glob) in [("include", include), ("exclude", exclude)] {
            options.extend(glob.map(|glob| (key.to_owned(), Value::Text(glob.to_owned()))));
        }
        options.insert("path".into(), "/".to_owned().into());
        let table = crate::mechanisms::inotify::DESCRIPTOR.create_parameters;
        Filter::new(&Parameters::check(table, &[], &crate::Address::new("inotify"), &options)?)
    }

    #[test]
    fn names_at_any_depth_and_paths_from_the_top() {
        let filter = filter(Some("{*.txt,*.md}"), Some("{.git,node_modules}")).unwrap();
        assert!(filter.tells(b"") && filter.tells(b"a.txt") && filter.tells(b"deep/er/a.md"));
        assert!(!filter.tells(b"a.c") && !filter.tells(b"x/.git") && filter.prunes(b"x/.git"));
        let filter = super::tests::filter(None, Some("/target/*")).unwrap();
        assert!(
            filter.prunes(b"target/debug") && !filter.prunes(b"target") && !filter.prunes(b"x/target/debug")
        );
        assert!(!filter.prunes(b"target/debug/deps"), "what is in it is not asked for");
        assert!(filter.tells(b"\xff\xfe"));
    }

    #[test]
    fn a_bad_glob_is_refused_with_its_key() {
        let error = filter(None, Some("{a")).unwrap_err();
        assert!(error.text.contains("\"exclude\"") && error.text.contains("{a"), "{error}");
    }
}
