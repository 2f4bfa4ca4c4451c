//! C programs as the other process: what the C library does is what others see.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use super::{Peer, TemporaryPath};

impl Peer {
    /// Compiles and starts a program that says "ready"; `None`, visibly, where there is no compiler.
    pub fn compiled(source: &str) -> Option<Self> {
        Self::compiled_in(source, &[])
    }

    /// The same, started by another command.
    pub fn compiled_in(source: &str, with: &[&str]) -> Option<Self> {
        let program = TemporaryPath::new();
        let compiler = Command::new("cc")
            .args([
                "-O1",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-pthread",
                "-x",
                "c",
                "-o",
                program.text(),
                "-",
                "-lrt",
            ])
            .stdin(Stdio::piped())
            .spawn();
        let mut compiler = match compiler {
            Ok(compiler) => compiler,
            Err(error) => {
                eprintln!("SKIPPED: cannot start cc: {error}");
                return None;
            }
        };
        compiler.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
        assert!(compiler.wait().unwrap().success(), "the C program does not compile");
        let words: Vec<_> = with.iter().copied().chain([program.text()]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        Some(Self::run(command).unwrap())
    }
}
