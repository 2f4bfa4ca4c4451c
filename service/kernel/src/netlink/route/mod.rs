//! rtnetlink(7): links, addresses, routes, neighbours and rules.

use super::{Address, Event, Link, Neighbour, Route, Rule, Source};
use crate::{Attempt, Readiness, Result};

/// The source of links, addresses, routes, neighbours and rules.
pub struct Routes {}

impl Routes {
    pub fn open() -> Result<Self> {
        Ok(Self {})
    }

    pub fn drained(&mut self) -> Vec<Event> {
        Vec::new()
    }

    pub fn links(&mut self) -> Vec<Link> {
        Vec::new()
    }

    pub fn addresses(&mut self) -> Vec<Address> {
        Vec::new()
    }

    pub fn routes(&mut self) -> Result<Vec<Route>> {
        Ok(Vec::new())
    }

    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>> {
        Ok(Vec::new())
    }

    pub fn rules(&mut self) -> Result<Vec<Rule>> {
        Ok(Vec::new())
    }
}

impl Source for Routes {
    fn next(&mut self) -> Result<Attempt<Vec<Event>>> {
        Ok(Attempt::Wait(Readiness::Any(Vec::new())))
    }
}
