//! The spawner: the one process of the service that is root on the system bus.
//!
//! It starts workers, each with exactly the identity of a caller, tells whether a caller is
//! confined, and ends workers that are stuck. It has one thread, knows no bus, and reads requests
//! of one fixed size from the front only: small enough to be read in one sitting.

pub mod protocol;
