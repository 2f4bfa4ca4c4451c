//! Message buses as a mechanism: calls, signals, properties and names of others, who are written with dbus-python,
//! which is libdbus, or are busctl and gdbus.

mod calls;
mod codegen;
mod cookbook;
mod gdbus;
mod names;
mod peer;
mod properties;
mod real;
mod refusals;
mod signals;
