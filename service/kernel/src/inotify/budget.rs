//! How many watches may be made: whoever makes an endpoint gives it a [`Budget`], which a tree takes
//! one share of for each directory below the watched one.

use std::{any::Any, fmt, sync::Arc};

use crate::Result;

/// One watch more; given back when it is dropped.
pub struct Share(#[expect(dead_code, reason = "held, never looked at")] Box<dyn Any + Send + Sync>);

impl Share {
    pub fn new(held: impl Any + Send + Sync) -> Self {
        Self(Box::new(held))
    }
}

type Take = dyn Fn() -> Result<Share> + Send + Sync;

/// Gives out shares, or an error that names the limit; without one there is no limit.
#[derive(Clone, Default)]
pub struct Budget(Option<Arc<Take>>);

impl Budget {
    pub fn new(take: impl Fn() -> Result<Share> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(take)))
    }

    pub fn take(&self) -> Result<Option<Share>> {
        self.0.as_ref().map(|take| take()).transpose()
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Budget")
    }
}
