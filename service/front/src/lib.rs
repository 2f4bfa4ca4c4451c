//! The front: the process that has the name on the system bus, and nothing else to lose.
//!
//! It admits each message, finds out who sent it, and hands it, unopened, to the worker that is
//! that caller; what the worker answers it checks and hands back. It knows no interface of the
//! mechanisms, opens nothing and maps nothing.

#![forbid(unsafe_code)]
