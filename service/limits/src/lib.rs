//! A table of limits: one list is the source of the keys of a section of the configuration file, of
//! the values in force and of the reference page. The engine has one, and the front.

#![forbid(unsafe_code)]

use serde::{
    Deserialize, Deserializer,
    de::{Error, Unexpected},
};

/// Key, meaning, default and hard maximum of a limit.
pub type Row = (&'static str, &'static str, u32, u32);

/// Declares the struct `Limits` of these fields.
///
/// The word before `at most` names the function that reads the value, [`any`] or [`positive`]; it has
/// to be in scope.
///
/// ```
/// use ipc_limits::{any, limits, positive};
///
/// limits! {
///     /// Calls in flight.
///     calls("calls") = 64, "positive" at most 256;
///     /// File descriptors of one call.
///     fds_per_call("fds-per-call") = 2, "any" at most 4;
/// }
///
/// assert_eq!(Limits::default().calls, 64);
/// assert_eq!(Limits::TABLE[1], ("fds-per-call", " File descriptors of one call.", 2, 4));
/// ```
#[macro_export]
macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $field:ident ($key:literal) = $default:literal, $least:literal at most $max:literal;)*) => {
        /// The limits in force.
        #[derive(Debug, Clone, PartialEq, Eq, ::serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Limits {
            $($(#[doc = $doc])+ #[serde(rename = $key, deserialize_with = $least)] pub $field: u32,)*
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl Limits {
            pub const TABLE: &[$crate::Row] = &[$(($key, concat!($($doc),+), $default, $max)),*];

            /// Each key with its value, in the order of the table.
            pub fn values(&self) -> impl Iterator<Item = (&'static str, u32)> {
                [$(($key, self.$field)),*].into_iter()
            }

            /// The first limit that is set beyond its hard maximum: key, value, maximum.
            pub fn beyond_maximum(&self) -> Option<(&'static str, u32, u32)> {
                let of_row = |((key, value), row): ((_, u32), &$crate::Row)| (key, value, row.3);
                self.values().zip(Self::TABLE).map(of_row).find(|(_, value, maximum)| value > maximum)
            }
        }
    };
}

/// How a limit is read of which 0 means that nothing of the kind is allowed.
pub fn any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    u32::deserialize(deserializer)
}

/// How a limit is read that the service cannot work with at 0.
pub fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match any(deserializer)? {
        0 => Err(D::Error::invalid_value(Unexpected::Unsigned(0), &"at least 1")),
        value => Ok(value),
    }
}

/// Panics unless the table makes sense; for the tests of who declares one.
pub fn check(table: &[Row]) {
    for (index, (key, doc, default, maximum)) in table.iter().enumerate() {
        assert!(default <= maximum, "{key}");
        assert!(doc.trim().ends_with('.'), "{key}: {doc}");
        assert!(table[..index].iter().all(|(other, ..)| other != key), "{key} twice");
    }
}

#[cfg(test)]
mod tests {
    use super::{any, check, positive};

    limits! {
        /// Calls in flight.
        calls("calls") = 64, "positive" at most 256;
        /// File descriptors of one call.
        fds_per_call("fds-per-call") = 2, "any" at most 4;
    }

    #[test]
    fn a_table_is_defaults_keys_and_maxima() {
        check(Limits::TABLE);
        let limits = Limits::default();
        assert_eq!(limits.values().collect::<Vec<_>>(), [("calls", 64), ("fds-per-call", 2)]);
        assert_eq!(limits.beyond_maximum(), None);
        let limits = Limits { calls: 256, fds_per_call: 5 };
        assert_eq!(limits.beyond_maximum(), Some(("fds-per-call", 5, 4)));
    }

    #[test]
    fn what_has_to_be_positive_is_not_read_as_0() {
        let read = toml::from_str::<Limits>;
        assert_eq!(read("fds-per-call = 0"), Ok(Limits { fds_per_call: 0, ..Limits::default() }));
        let error = read("calls = 0").expect_err("0 calls").to_string();
        assert!(error.contains("line 1") && error.contains("at least 1"), "{error}");
        assert!(read("calls = -1").is_err() && read("call = 1").is_err());
    }
}
