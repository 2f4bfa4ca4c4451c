//! POSIX message queues, mq_overview(7): the calls, and what the mqueue file system shows.

pub mod calls;
pub mod list;
pub mod queue;
